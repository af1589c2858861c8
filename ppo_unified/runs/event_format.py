"""The format of TensorBoard's event files, described at https://www.tensorflow.org/tutorials/load_data/tfrecord.

Each record consists of the payload's length (8 bytes), the masked checksum of the length, the payload, and the masked
checksum of the payload.
"""

from __future__ import annotations

import struct

import google_crc32c

TAIL_FILES = 8  # number of files in a folder that are read if only the newest data is needed
PREFIX = "events.out.tfevents"  # the names of event files contain this text
HEADER = struct.Struct("<QI")  # length of the payload, masked checksum of that length
CRC = struct.Struct("<I")


def masked_crc(data: bytes) -> int:
    """Return the CRC-32C of `data`, masked as the TFRecord format requires."""
    crc = int(google_crc32c.value(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
