#!/usr/bin/env python3
"""Reads an artifact or statistics without the library. Usage: read_artifact.py FILE"""

# [doc:read]
import json, sys
import numpy as np

file = open(sys.argv[1], "rb").read()
begin = 8 + int.from_bytes(file[:8], "little")
header = json.loads(file[8:begin])
metadata = header.pop("__metadata__")
description = json.loads(metadata["description"])
dtypes = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "U64": "<u8", "U16": "<u2", "U8": "u1"}
tensors = {name: np.frombuffer(file[begin:][slice(*it["data_offsets"])], dtypes[it["dtype"]]).reshape(it["shape"])
           for name, it in header.items()}
# [/doc]

print(metadata["kind"], description["info"]["spec"])
for name, tensor in tensors.items():
    print(name, *tensor.shape)
