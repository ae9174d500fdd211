"""Make this process that of a user without an entry in the password database."""

import pwd


def _getpwuid(uid: int) -> pwd.struct_passwd:
    raise KeyError(f"getpwuid(): uid not found: {uid}")


pwd.getpwuid = _getpwuid
