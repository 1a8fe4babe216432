"""Refuse what the text of a call and the files that it names show to be wrong, before torch is imported."""

from pathlib import Path

from converter.artifacts.detect_format import detect_format
from converter.capture.input_shapes import requested_shapes
from converter.checkpoint.file_format import check_readable
from converter.checkpoint.trust import Trust
from converter.checkpoint.user_source import mapping_files, split_builder, split_factory
from converter.options import ConvertOptions, InspectOptions, IntoOptions, LoadOptions, VerifyOptions
from converter.verification.user_inputs import check_exists


def check_call(model: Path, options: LoadOptions, artifact: Path | None = None, builder: str | None = None) -> None:
    """Check the files and the options, as far as this needs no torch; the steps that need torch repeat it.

    Raises:
        ConversionError: a file is missing or of another kind, or an option is not valid.
    """
    if artifact is not None:
        detect_format(artifact)
    if builder is not None:
        split_builder(builder)
    if isinstance(options, InspectOptions):
        mapping_files(options.artifact.mappings)
    Trust.of(options.model.trust)
    check_readable(model)
    if isinstance(options.model.factory, str):
        split_factory(options.model.factory)
    requested_shapes(options.capture.input_shapes, options.capture.image_size)
    if isinstance(options, ConvertOptions | VerifyOptions | IntoOptions):
        check_exists(options.proof.inputs)
    if isinstance(options, ConvertOptions):
        check_exists(options.quantization.calibrate)
