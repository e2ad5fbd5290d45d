"""Physics: the adjoint in float64, one by one against batch, known transforms."""

import pytest
import torch

from medgen.core.errors import MedgenError
from medgen.core.fourier import fft, ifft
from medgen.core.operator import inner
from medgen.core.random import Rng
from medgen.operators.downsample import Downsample
from medgen.operators.identity import Identity
from medgen.operators.inpaint import Inpaint
from medgen.operators.mri import MaskedFourier, coil_maps, equispaced, random_lines
from medgen.operators.sampling import Complete, Holes, Lines

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


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NAMES[:-1])
def test_a_measurement_has_the_noise_it_was_asked_for_and_only_where_it_measures(name, dims):
    operator, state, x = case(name, dims)
    rows = 400
    x, state = x[:1].expand(rows, *x.shape[1:]), {k: v[:1].expand(rows, *v.shape[1:]) for k, v in state.items()}
    noise = torch.full((rows,), 0.3, dtype=torch.double)
    measured = operator.measure(x, state, noise, Rng(0, 0, range(rows)))
    assert float(operator.residual(x, measured).square().mean().sqrt()) == pytest.approx(0.3, rel=0.02)
    unseen = operator.measured(torch.ones_like(measured.y), state) == 0
    assert bool((measured.y[unseen] == 0).all())
    again = operator.measure(x[7:8], {k: v[7:8] for k, v in state.items()}, noise[7:8], Rng(0, 0, [7]))
    torch.testing.assert_close(again.y, measured.y[7:8])


def test_what_a_network_is_shown_keeps_intensities():
    flat = torch.full((2, 1, 8, 8), 0.7)
    torch.testing.assert_close(Downsample((2, 4)).view(Downsample((2, 4))(flat, {}), {}), flat)
    state = Lines("equispaced").draw((2, 1, 8, 8), Rng(0, 0, [0, 1]))
    torch.testing.assert_close(MaskedFourier().view(MaskedFourier()(flat, state), state), flat)
    state = Holes().draw((2, 1, 8, 8), Rng(0, 0, [0, 1]))
    view = Inpaint().view(Inpaint()(flat, state), state)
    assert torch.equal(view[:, 1:], state["mask"]) and torch.equal(view[:, :1], 0.7 * state["mask"])


def test_lines_are_drawn_per_sample():
    shape = (64, 1, 10, 32)
    random = Lines("random", 4).draw(shape, Rng(3, 0, range(64)))["mask"]
    assert random.shape == (64, 1, 1, 32) and set(random.sum(-1).flatten().tolist()) == {8.0}
    assert torch.equal(random[5:6], Lines("random", 4).draw((1, *shape[1:]), Rng(3, 0, [5]))["mask"])
    even = Lines("equispaced", 4, centre=1 / 32).draw(shape, Rng(3, 0, range(64)))["mask"][:, 0, 0]
    offsets = {tuple(torch.nonzero(row[:12]).flatten().tolist()) for row in even}
    assert offsets == {(o, o + 4, o + 8) for o in range(4)}
    mixed = Lines("both", 4, centre=1 / 32).draw(shape, Rng(3, 0, range(64)))["mask"][:, 0, 0]
    share = sum(bool((torch.nonzero(row[:12]).diff(dim=0) == 4).all()) for row in mixed) / 64
    assert 0.3 < share < 0.75
    assert Complete().draw(shape, Rng(0, 0, range(64))) == {}
    for wrong in ({"pattern": "spiral"}, {"acceleration": 0}, {"centre": 0.0}):
        with pytest.raises(MedgenError, match="Lines"):
            Lines(**wrong)


@pytest.mark.parametrize("size", [(9, 12), (5, 9, 12)])
def test_simulated_coils_see_every_voxel_once_together(size):
    maps = coil_maps(6, size)
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(size))
    assert float(maps.abs().std(0).max()) > 0.1, "the coils must differ"
    state = Lines(coils=6).draw((2, 1, *size), Rng(0, 0, [0, 1]))
    x = torch.randn(2, 1, *size)
    torch.testing.assert_close(
        MaskedFourier().adjoint(MaskedFourier()(x, {**state, "mask": torch.ones(2, 1, *size)}), state | {"mask": torch.ones(2, 1, *size)}),
        x,
    )


def test_holes_have_the_sides_they_were_asked_for():
    mask = Holes(0.25, 0.5).draw((50, 1, 16, 8), Rng(0, 0, range(50)))["mask"]
    for row in 1 - mask[:, 0]:
        sides = row.any(1).sum(), row.any(0).sum()
        assert 4 <= sides[0] <= 8 and 2 <= sides[1] <= 4 and int(row.sum()) == int(sides[0] * sides[1])
