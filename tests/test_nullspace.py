"""What a measurement sees of an error and what it does not, against closed forms."""

import pytest
import torch

from medgen.core.errors import MedgenError
from medgen.core.fourier import fft, ifft
from medgen.core.operator import inner
from medgen.metrics.nullspace import split_error
from medgen.operators.downsample import Downsample
from medgen.operators.inpaint import Inpaint
from medgen.operators.mri import MaskedFourier, coil_maps


def error(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def symmetric(mask):
    """A mask that holds with every frequency its negative, so that the measured part of a real image is real."""
    turned = mask
    for axis in range(2, mask.ndim):
        turned = turned.flip(axis) if mask.shape[axis] % 2 else turned.flip(axis).roll(1, axis)
    return torch.maximum(mask, turned)


@pytest.mark.parametrize("size", [(16, 12), (9, 11), (6, 8, 4)])
def test_a_masked_transform_splits_by_its_mask(size):
    mask = symmetric((torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(1)) < 0.3).double())
    e = error(2, 1, *size)
    found = split_error(e, MaskedFourier(), {"mask": mask})
    torch.testing.assert_close(found.range, ifft(mask * fft(e, len(size)), len(size)).real)
    torch.testing.assert_close(found.range + found.null, e)
    assert float(found.seen.max()) < 1e-9
    own, hidden = found.shares()
    torch.testing.assert_close(own + hidden, torch.ones(2, dtype=torch.float64))
    power = (mask * fft(e, len(size)).abs().square()).flatten(1).sum(1) / inner(e, e)
    torch.testing.assert_close(own, power)


def test_a_hole_is_what_inpainting_does_not_see():
    mask = torch.ones(1, 1, 8, 8)
    mask[..., 2:5, 2:5] = 0
    e = error(1, 1, 8, 8)
    found = split_error(e, Inpaint(), {"mask": mask})
    torch.testing.assert_close(found.range, e * mask)
    torch.testing.assert_close(found.null, e * (1 - mask))


def test_large_voxels_do_not_see_what_averages_out():
    e = error(1, 1, 8, 8)
    means = e.reshape(1, 1, 4, 2, 4, 2).mean((3, 5))
    found = split_error(e, Downsample((2, 2)), {})
    torch.testing.assert_close(found.range, means.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_coils_split_as_the_pseudoinverse_of_the_written_out_matrix():
    size = (6, 8)
    mask = torch.zeros(1, 1, 1, 8, dtype=torch.float64)
    mask[..., ::4] = 1
    state = {"mask": mask, "maps": coil_maps(2, size)[None].to(torch.cdouble)}
    operator, e = MaskedFourier(), error(1, 1, *size)
    units = torch.eye(48, dtype=torch.float64).reshape(48, 1, *size)
    rows = operator(units, {k: v.expand(48, *v.shape[1:]) for k, v in state.items()}).flatten(1)
    matrix = torch.cat([rows.real, rows.imag], 1).T
    expected = (torch.linalg.pinv(matrix, rtol=1e-5) @ matrix @ e.flatten()).reshape(e.shape)
    found = split_error(e, operator, state, iterations=400)
    torch.testing.assert_close(found.range, expected, atol=1e-6, rtol=1e-6)  # maps are rounded to float32
    assert float(found.seen) < 1e-6 and abs(float(inner(found.range, found.null))) < 1e-6


def test_no_error_has_no_parts_and_a_complex_one_is_refused():
    mask = torch.ones(1, 1, 8, 8)
    found = split_error(torch.zeros(1, 1, 8, 8), MaskedFourier(), {"mask": mask})
    assert float(found.range.abs().max()) == float(found.null.abs().max()) == float(found.seen) == 0.0
    with pytest.raises(MedgenError, match="real and finite"):
        split_error(torch.zeros(1, 1, 8, 8, dtype=torch.complex64), MaskedFourier(), {"mask": mask})


def test_shares_within_a_mask_count_only_its_voxels():
    mask, where = torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., :4, :] = 0
    where[..., :2, :] = True
    found = split_error(error(1, 1, 8, 8), Inpaint(), {"mask": mask})
    assert [float(share) for share in found.shares(where)] == [0.0, 1.0]
