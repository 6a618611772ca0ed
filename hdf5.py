"""Asks the HDF5 library that netCDF4 has loaded what netCDF4 does not say: whether a file takes values from others.

Reads    the links and the storage of NetCDF-4 files, no values. Linux; elsewhere it says that it cannot.

    from hdf5 import refuse_other_files
    refuse_other_files("Data/DataEval/2023_08_01.nc")
"""

import contextlib
import ctypes
import os
import re
from functools import cache

from utils import DataError, log, shown

__all__ = ["library", "refuse_other_files"]


def refuse_other_files(path):
    """Raise DataError where an HDF5 file takes values from other files, which nobody has named as input.

    That is by external links, external storage or virtual datasets. netCDF4 follows them and cannot tell, so the HDF5
    library that it has loaded is asked.
    """
    with open(path, "rb") as stream:
        hdf5 = None if stream.read(3) == b"CDF" else library()
    if hdf5 is None:
        return
    found = []

    def look(group, name, about, data):
        kind = ctypes.cast(about, ctypes.POINTER(ctypes.c_int))[0]  # of the link; the first member of H5L_info_t
        if kind == 0 and (dataset := hdf5.H5Dopen2(group, name, 0)) >= 0:
            plan = hdf5.H5Dget_create_plist(dataset)
            if hdf5.H5Pget_external_count(plan) > 0 or hdf5.H5Pget_layout(plan) == 3:  # virtual
                found.append(name)
            hdf5.H5Pclose(plan), hdf5.H5Dclose(dataset)
        if kind >= 64:  # external, or of a kind that a plug-in reads
            found.append(name)
        return 0

    file = hdf5.H5Fopen(os.fsencode(path), 0, 0)
    if file >= 0:
        hdf5.visit(file, 0, 0, hdf5.callback(look), None)
        hdf5.H5Fclose(file)
    if found:
        raise DataError(
            f"{path}: {shown(found[0].decode('utf-8', 'replace'))} lies in another file (an external link, external "
            "storage or a virtual dataset), which is not followed; expected all values inside: copy it with nccopy"
        )


@cache
def library():
    """The HDF5 library that netCDF4 has loaded, with the types of what is asked of it; None where it is not found."""
    import netCDF4  # noqa: F401  (loads it)

    with contextlib.suppress(OSError, AttributeError, StopIteration):
        with open("/proc/self/maps") as maps:
            loaded = {
                line.split(maxsplit=5)[-1].strip() for line in maps if re.search(r"/libhdf5(_serial)?\b[^/]*$", line)
            }
        hdf5 = ctypes.CDLL(next(path for path in sorted(loaded) if "_hl" not in path))
        hid, text = ctypes.c_int64, ctypes.c_char_p
        hdf5.callback = ctypes.CFUNCTYPE(ctypes.c_int, hid, text, ctypes.c_void_p, ctypes.c_void_p)
        hdf5.visit = getattr(hdf5, "H5Lvisit2", None) or hdf5.H5Lvisit1
        for function, result, *given in (
            (hdf5.H5Fopen, hid, text, ctypes.c_uint, hid),
            (hdf5.H5Fclose, ctypes.c_int, hid),
            (hdf5.H5Dopen2, hid, hid, text, hid),
            (hdf5.H5Dclose, ctypes.c_int, hid),
            (hdf5.H5Dget_create_plist, hid, hid),
            (hdf5.H5Pclose, ctypes.c_int, hid),
            (hdf5.H5Pget_external_count, ctypes.c_int, hid),
            (hdf5.H5Pget_layout, ctypes.c_int, hid),
            (hdf5.H5Eset_auto2, ctypes.c_int, hid, ctypes.c_void_p, ctypes.c_void_p),
            (hdf5.visit, ctypes.c_int, hid, ctypes.c_int, ctypes.c_int, hdf5.callback, ctypes.c_void_p),
        ):
            function.restype, function.argtypes = result, given
        hdf5.H5Eset_auto2(0, None, None)  # it would print what it cannot open
        return hdf5
    log("the HDF5 library was not found: links from a file to other files are not looked for")
    return None
