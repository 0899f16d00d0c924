"""Folders that only this user may write: compiled programs and trust are kept there."""

import os
import stat
from pathlib import Path


def private_folder(path: Path) -> Path:
    """The folder, made where it is missing, with mode 700.

    Raises:
        PermissionError: it is a symbolic link, no folder, or belongs to another user, who could put anything there.
        OSError: it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise PermissionError(f"{path} is {'a symbolic link' if stat.S_ISLNK(found.st_mode) else 'no folder'}")
    if hasattr(os, "getuid") and found.st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to another user")
    if stat.S_IMODE(found.st_mode) & 0o077:
        path.chmod(0o700)
    return path
