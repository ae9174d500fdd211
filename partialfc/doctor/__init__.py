"""Whether a recipe would run well on the machines at hand: a look at each thing that it takes."""
