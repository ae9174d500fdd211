"""Many runs of one recipe: a grid of settings, run one after another or dealt out to the tasks of a job, and tabulated."""
