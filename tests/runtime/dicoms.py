"""DICOM files, built with pydicom."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage


def dataset_of(pixels: np.ndarray, **elements: Any) -> FileDataset:
    """A data set of gray `pixels` (H, W), frames (N, H, W) or colors (H, W, 3), with other elements as stated."""
    is_colored = pixels.ndim == 3 and pixels.shape[2] == 3
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape[:2] if is_colored else pixels.shape[-2:]
    dataset.SamplesPerPixel = 3 if is_colored else 1
    dataset.PhotometricInterpretation = "RGB" if is_colored else "MONOCHROME2"
    if is_colored:
        dataset.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.HighBit = dataset.BitsStored - 1
    data = pixels.tobytes()
    dataset.PixelData = data + bytes(len(data) % 2)
    return dataset


def written(dataset: FileDataset) -> bytes:
    """Return the bytes of a DICOM file."""
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def dicom(pixels: np.ndarray, **elements: Any) -> bytes:
    """Return the bytes of a DICOM file of `pixels`; see `dataset_of`."""
    return written(dataset_of(pixels, **elements))
