"""Physics: the adjoint in float64, one by one against batch, known transforms."""

import pytest
import torch

from medgen.core.errors import MedgenError
from medgen.core.fourier import fft, ifft
from medgen.core.operator import inner
from medgen.operators.downsample import Downsample
from medgen.operators.identity import Identity
from medgen.operators.inpaint import Inpaint
from medgen.operators.mri import MaskedFourier, equispaced, random_lines

B = 3


def case(name: str, dims: int):
    """Operator, state, and an image that it takes."""
    g = torch.Generator().manual_seed(dims)
    size = (6, 8, 4)[:dims]
    mask = (torch.rand(B, 1, *size, generator=g) < 0.5).double()
    maps = torch.randn(B, 4, *size, dtype=torch.cdouble, generator=g)
    real = torch.randn(B, 1, *size, dtype=torch.double, generator=g)
    complex_ = torch.randn(B, 1, *size, dtype=torch.cdouble, generator=g)
    return {
        "identity": (Identity(), {}, real),
        "inpaint": (Inpaint(), {"mask": mask}, real),
        "downsample": (Downsample((2, 4, 2)[:dims]), {}, real),
        "single coil": (MaskedFourier(), {"mask": mask}, real),
        "coils": (MaskedFourier(), {"mask": mask, "maps": maps}, real),
        "complex coils": (MaskedFourier(real=False), {"mask": mask, "maps": maps}, complex_),
    }[name]


NAMES = ["identity", "inpaint", "downsample", "single coil", "coils", "complex coils"]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_adjoint(name, dims):
    operator, state, x = case(name, dims)
    y = operator(x, state)
    assert operator.shape(tuple(x.shape), state) == tuple(y.shape)
    other = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(9))
    back = operator.adjoint(other, state)
    assert back.dtype == x.dtype and back.shape == x.shape
    torch.testing.assert_close(inner(y, other), inner(x, back), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_one_by_one_equals_batch_and_the_map_is_linear(name, dims):
    operator, state, x = case(name, dims)
    whole = operator(x, state)
    rows = [operator(x[i : i + 1], {k: v[i : i + 1] for k, v in state.items()}) for i in range(B)]
    torch.testing.assert_close(torch.cat(rows), whole)
    torch.testing.assert_close(operator(2 * x - x.flip(-1), state), 2 * whole - operator(x.flip(-1), state))


@pytest.mark.parametrize("size", [(8,), (7,), (6, 5), (4, 6, 3)])
def test_the_transform_is_centred_and_unitary(size):
    dims = len(size)
    x = torch.randn(2, 1, *size, dtype=torch.cdouble)
    k = fft(x, dims)
    torch.testing.assert_close(ifft(k, dims), x)
    torch.testing.assert_close(inner(k, k), inner(x, x))
    constant = fft(torch.ones(1, 1, *size, dtype=torch.cdouble), dims)
    centre = (0, 0, *(s // 2 for s in size))
    assert float(constant[centre].real) == pytest.approx(torch.tensor(size).prod().item() ** 0.5)
    assert float(constant.abs().sum()) == pytest.approx(float(constant[centre].real))


def test_full_sampling_gives_the_image_back():
    x = torch.randn(2, 1, 8, 6)
    operator, state = MaskedFourier(), {"mask": torch.ones(2, 1, 8, 6)}
    torch.testing.assert_close(operator.adjoint(operator(x, state), state), x)


def test_masks_have_their_lines():
    mask = equispaced(32, 4, centre=0.125, offset=1)
    assert mask[14:18].all() and mask[1::4].all() and int(mask.sum()) == 8 + 3
    uniform = torch.rand(32, generator=torch.Generator().manual_seed(0))
    mask = random_lines(32, 4, uniform, centre=0.125)
    assert mask[14:18].all() and int(mask.sum()) == 8
    assert torch.equal(mask, random_lines(32, 4, uniform, centre=0.125))


def test_downsampling_is_a_mean_and_refuses_what_it_cannot_divide():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    torch.testing.assert_close(Downsample((2, 2))(x, {})[0, 0], torch.tensor([[2.5, 4.5], [10.5, 12.5]]))
    with pytest.raises(MedgenError, match="does not divide"):
        Downsample((3, 2))(x, {})
