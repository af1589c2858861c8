"""The file format of TensorBoard's event files: https://www.tensorflow.org/tutorials/load_data/tfrecord.

A record is the length of its payload, the masked checksum of these 8 bytes, the payload, and its masked checksum.
"""

from __future__ import annotations

import struct

import google_crc32c

PREFIX = "events.out.tfevents"  # of the names of event files
HEADER = struct.Struct("<QI")  # length of the payload, masked checksum of these 8 bytes
CRC = struct.Struct("<I")


def masked_crc(data: bytes) -> int:
    crc = int(google_crc32c.value(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
