"""Folders that only this user can write to, for compiled programs and records of trust."""

import os
import stat
from pathlib import Path


def private_folder(path: Path) -> Path:
    """Return the folder with mode 700, creating it if it is missing.

    Raises:
        PermissionError: the path is a symbolic link, not a folder, or owned by another user, who could write to it.
        OSError: the folder cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise PermissionError(f"{path} is {'a symbolic link' if stat.S_ISLNK(found.st_mode) else 'not a folder'}")
    if hasattr(os, "getuid") and found.st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to another user")
    if stat.S_IMODE(found.st_mode) & 0o077:
        path.chmod(0o700)
    return path
