"""`medgen import`: folders of diffusers and weights of MONAI become checkpoints that load alone and draw what the original draws."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL as DiffusersKL
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from monai.networks.nets import AutoencoderKL as MonaiKL
from monai.networks.nets import DiffusionModelUNet
from safetensors.torch import save_file
from torch import nn

import medgen
from medgen.checkpoint import build, load
from medgen.cli.configs import compose, resolved
from medgen.cli.importing import intensity_rule
from medgen.cli.main import main, parser
from medgen.cli.originals import latent_scaling
from medgen.cli.run import contract_of, new_run
from medgen.core.condition import Condition
from medgen.core.errors import MedgenError
from medgen.core.random import Rng
from medgen.nn.adapters.monai import MonaiUNet

UNET = {
    "block_out_channels": (4, 8),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "resnet_time_scale_shift": "scale_shift",
}
VAE = {
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 3,
    "block_out_channels": (4, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "scaling_factor": 0.25,
}
MONAI_UNET = {"channels": [4, 8], "num_res_blocks": [1, 1], "attention_levels": [False, True], "norm_num_groups": 4, "num_head_channels": 4}
MONAI_VAE = {"channels": [4, 8], "num_res_blocks": 1, "attention_levels": [False, False], "norm_num_groups": 4, "latent_channels": 3}
PICTURE = ["--target", "t1", "--size", "9", "12"]
SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195, "clip_sample": False}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def awake(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


def imported(folder: Path, original: Path, *options: str) -> Path:
    main(["import", str(original), "-o", str(folder), *(options or PICTURE)])
    return folder


def refused(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["import", *map(str, arguments)])
    assert stop.value.code == 2
    return capsys.readouterr().err


def pipeline(folder: Path, scheduler: object, latent: bool = False, **unet) -> tuple[UNet2DModel, DiffusersKL | None]:
    """A pipeline of random weights, as diffusers saves one."""
    channels = 3 if latent else 1
    network = awake(UNet2DModel(**{"in_channels": channels, "out_channels": channels, **UNET, **unet}))
    network.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    autoencoder = awake(DiffusersKL(**VAE)) if latent else None
    if latent:
        autoencoder.save_pretrained(folder / "vae")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    return network, autoencoder


def walked(network, scheduler, steps: int, shape: tuple[int, ...], **labels) -> torch.Tensor:
    """The library's own loop from medgen's initial noise."""
    scheduler.set_timesteps(steps)
    x = Rng(0, samples=range(shape[0])).normal(shape)
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = network(x, t, **labels).sample
            x = scheduler.step(output, t, x).prev_sample
    return x


def padded(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.pad(x, (0, -x.shape[-1] % 2, 0, -x.shape[-2] % 2), mode="replicate")


class Padded(nn.Module):
    """An original on any size, as the adapter runs it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x, t, **labels):
        made = self.network(padded(x), t, **labels)
        made.sample = made.sample[..., : x.shape[-2], : x.shape[-1]]
        return made


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_a_pipeline_draws_what_its_own_loop_draws(tmp_path, prediction, kind):
    scheduler = kind(prediction_type=prediction, timestep_spacing="trailing", **{k: v for k, v in SCHEDULER.items() if k != "clip_sample"})
    network, _ = pipeline(tmp_path / "original", scheduler)
    model = medgen.load(imported(tmp_path / "medgen", tmp_path / "original", *PICTURE, "--steps", "5"))
    made = np.stack([v.array for v in model.generate(2, seed=0)])
    expected = walked(Padded(network), scheduler, 5, (2, 1, 9, 12)).numpy()
    assert np.abs(made - expected).max() < 1e-3 * np.abs(expected).max()


def test_the_schedulers_clipping_is_kept(tmp_path):
    scheduler = DDIMScheduler(clip_sample=True, timestep_spacing="trailing")
    pipeline(tmp_path / "original", scheduler)
    made = medgen.load(imported(tmp_path / "medgen", tmp_path / "original")).generate(2)
    assert max(float(np.abs(v.array).max()) for v in made) <= 1 + 1e-5


def test_a_latent_pipeline_takes_the_scaling_as_spread(tmp_path):
    scheduler = DDIMScheduler(timestep_spacing="trailing", **SCHEDULER)
    network, autoencoder = pipeline(tmp_path / "original", scheduler, latent=True)
    model = medgen.load(imported(tmp_path / "medgen", tmp_path / "original", *PICTURE, "--steps", "4"))
    codec = model.model.codec
    assert torch.equal(codec.std, torch.full((3,), 4.0)) and not codec.mean.any() and int(codec.measured) == 1
    z = walked(Padded(network), scheduler, 4, (2, 3, 5, 6))
    with torch.no_grad():
        expected = autoencoder.decode(z / 0.25).sample[..., :9, :12].numpy()
        x = torch.rand(1, 1, 8, 12) * 2 - 1
        torch.testing.assert_close(codec.encode(x), autoencoder.encode(x).latent_dist.mean * 0.25)
    made = np.stack([v.array for v in model.generate(2, seed=0)])
    assert np.abs(made - expected).max() < 1e-3 * np.abs(expected).max()


def test_a_class_embedding_becomes_a_label_and_channels_a_source(tmp_path):
    scheduler = DDIMScheduler(timestep_spacing="trailing", **SCHEDULER)
    network, _ = pipeline(tmp_path / "classes", scheduler, num_class_embeds=3)
    model = medgen.load(imported(tmp_path / "a", tmp_path / "classes", *PICTURE, "--steps", "4"))
    made = model.generate(2, seed=0, given={"label": [2, 0]})
    expected = walked(Padded(network), scheduler, 4, (2, 1, 9, 12), class_labels=torch.tensor([2, 0])).numpy()
    assert np.abs(np.stack([v.array for v in made]) - expected).max() < 1e-3 * np.abs(expected).max()

    pipeline(tmp_path / "translator", scheduler, in_channels=2)
    where = ["--slice-axis", "2", "--spacing", "1", "1", "1", "--intensity", "mr_percentile=0,700"]
    model = medgen.load(imported(tmp_path / "b", tmp_path / "translator", *PICTURE, "--source", "t2", *where, "--steps", "2"))
    volume = medgen.core.volume.Volume(np.random.default_rng(0).random((1, 10, 12, 3), np.float32), np.eye(4))
    made = model.translate(volume)
    assert made.shape == (10, 12, 3) and made.units == "arbitrary (MR)" and made.meta["range"] == (0.0, 700.0)


def test_one_model_folder_needs_a_scheduler_and_a_size_only_if_it_has_none(tmp_path, capsys):
    network = awake(UNet2DModel(in_channels=1, out_channels=1, sample_size=(10, 12), **UNET))
    network.save_pretrained(tmp_path / "unet")
    DDPMScheduler(**SCHEDULER).save_pretrained(tmp_path / "scheduler")
    assert "which noise schedule" in refused(capsys, tmp_path / "unet", "-o", tmp_path / "a", "--target", "t1")
    assert not (tmp_path / "a").exists()
    options = ("--target", "t1", "--scheduler", str(tmp_path / "scheduler" / "scheduler_config.json"), "--steps", "3")
    checkpoint = load(imported(tmp_path / "a", tmp_path / "unet", *options))
    assert checkpoint.contract.size == (10, 12)
    assert checkpoint.model.sampler.scheduler == "DDPMScheduler" and checkpoint.model.levels.kind == "scaled_linear"
    assert "already" in refused(capsys, tmp_path / "unet", "-o", tmp_path / "a", *options)
    main(["import", str(tmp_path / "unet"), "-o", str(tmp_path / "a"), *options, "--overwrite"])


def bundle(folder: Path, dims: int = 2, latent: bool = True) -> dict[str, nn.Module]:
    """What a MONAI bundle holds: a configuration with references and expressions, and state dicts."""
    channels = 3 if latent else 1
    unet = {"spatial_dims": dims, "in_channels": channels, "out_channels": channels, **MONAI_UNET}
    vae = {"spatial_dims": dims, "in_channels": 1, "out_channels": 1, **MONAI_VAE}
    networks = {"unet": awake(DiffusionModelUNet(**unet)), "vae": awake(MonaiKL(**vae))}
    document = {
        "bundle_root": ".",
        "dims": dims,
        "device": "$torch.device('cuda')",
        "autoencoder_def": {"_target_": "monai.networks.nets.AutoencoderKL", **vae, "spatial_dims": "@dims"},
        "load_autoencoder": "$@autoencoder_def.load_state_dict(torch.load('x'))",
        "network_def": {
            "_target_": "DiffusionModelUNet",
            **unet,
            "spatial_dims": "$@dims",
            "in_channels": "@autoencoder_def::latent_channels" if latent else 1,
        },
        "scheduler": {
            "_target_": "monai.networks.schedulers.DDIMScheduler",
            "_requires_": ["@load_autoencoder"],
            "num_train_timesteps": 1000,
            "beta_start": 0.0015,
            "beta_end": 0.0195,
            "schedule": "scaled_linear_beta",
            "clip_sample": False,
        },
    }
    folder.mkdir()
    (folder / "inference.json").write_text(json.dumps(document))
    torch.save({"epoch": 3, "unet_state_dict": networks["unet"].state_dict(), "scale_factor": torch.tensor(0.5)}, folder / "unet.pt")
    save_file(networks["vae"].state_dict(), folder / "vae.safetensors")
    return networks


@pytest.mark.parametrize("dims", [2, 3])
def test_a_monai_bundle_draws_what_its_networks_draw(tmp_path, dims):
    networks = bundle(tmp_path / "bundle", dims)
    where = ["--spacing", "1", "1", "1"] if dims == 3 else []
    size = ["--size", *("10", "12", "8")[:dims]]
    files = ["--config", str(tmp_path / "bundle" / "inference.json"), "--autoencoder", str(tmp_path / "bundle" / "vae.safetensors")]
    options = ["--target", "t1", *size, *where, *files, "--steps", "5", "--about", "name=none", "licence=CC0"]
    model = medgen.load(imported(tmp_path / "medgen", tmp_path / "bundle" / "unet.pt", *options))
    assert torch.equal(model.model.codec.std, torch.full((3,), 2.0)) and model.contract.data["licence"] == "CC0"
    library = DDIMScheduler(timestep_spacing="trailing", **SCHEDULER)
    library.set_timesteps(5)
    shape = (2, 3, *(5, 6, 4)[:dims])
    pad = [w for s in reversed(shape[2:]) for w in (0, s % 2)]
    with torch.no_grad():
        kept = library.alphas_cumprod[library.timesteps[0]]
        z = Rng(0, samples=range(2)).normal(shape) * (1 - kept).sqrt()
        for t in library.timesteps:
            output = networks["unet"](nn.functional.pad(z, pad, mode="replicate"), t.expand(2))
            z = library.step(output[(..., *(slice(0, s) for s in shape[2:]))], t, z).prev_sample
        expected = networks["vae"].decode(z / 0.5).numpy()
    made = np.stack([v.array for v in model.generate(2, seed=0)])
    assert made.shape == expected.shape and np.abs(made - expected).max() < 1e-3 * np.abs(expected).max()
    steps = model.with_sampler("heun", steps=2).generate(1)[0]
    assert np.isfinite(steps.array).all()


def test_a_monai_network_with_cross_attention_starts_from_a_zero_null(tmp_path):
    arguments = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, **MONAI_UNET, "with_conditioning": True, "cross_attention_dim": 6}
    original = awake(DiffusionModelUNet(**arguments))
    torch.save(nn.DataParallel(original).state_dict(), tmp_path / "unet.pth")
    (tmp_path / "unet.yaml").write_text(json.dumps(arguments))
    DDPMScheduler().save_pretrained(tmp_path)
    files = ["--config", str(tmp_path / "unet.yaml"), "--scheduler", str(tmp_path / "scheduler_config.json")]
    model = load(imported(tmp_path / "a", tmp_path / "unet.pth", *PICTURE, *files)).model
    assert isinstance(model.network, MonaiUNet) and not model.network.conditioning.null_token.any()
    x, tokens = torch.randn(2, 1, 8, 8), torch.randn(2, 3, 6)
    kept = DDPMScheduler().alphas_cumprod[500]
    with torch.no_grad():
        for given, context in ((Condition(tokens=tokens), tokens), (Condition(), torch.zeros(2, 1, 6))):
            noise = original(x, torch.tensor([500, 500]), context=context)
            expected = (x - (1 - kept).sqrt() * noise) / kept.sqrt()
            made = model.denoise(x, float(kept.sqrt()), float((1 - kept).sqrt()), given)
            torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_an_imported_autoencoder_is_a_codec_to_train_on(tmp_path):
    autoencoder = awake(DiffusersKL(**VAE))
    autoencoder.save_pretrained(tmp_path / "vae")
    where = ["--slice-axis", "2", "--spacing", "1", "1", "1", "--intensity", "mr_percentile=0,1000"]
    data = ["data.source.size=[18,14]", "data.source.subjects={train: 2, validation: 1, test: 1}", "data.source.slices=4"]
    config = resolved(compose([*data, "run=x"]))
    theirs = contract_of(build(config["task"], trusted=True), build(config["data"], trusted=True).facts())
    spacing = [str(s) for s in theirs.spacing]
    where[where.index("--spacing") + 1 : where.index("--spacing") + 4] = spacing
    codec = imported(tmp_path / "codec", tmp_path / "vae", "--target", "t1", "--size", "18", "14", *where)
    small = [
        "data.batch_size=4",
        "data.workers=0",
        "network.channels=[8,16]",
        "network.blocks=1",
        "training.accelerator=cpu",
        "training.steps=2",
    ]
    often = ["training.validate_every=2", "training.save_every=2", "training.validate_batches=2", "sampler.steps=2"]
    run = tmp_path / "run"
    composed = compose([*data, *small, *often, "network=monai_unet", "model=latent_diffusion", f"codec={codec}", f"run={run}"])
    assert new_run(resolved(composed), run) == 0
    inside = load(run / "checkpoints" / "last").model.codec
    assert all(torch.equal(v, autoencoder.state_dict()[k]) for k, v in inside.autoencoder.network.state_dict().items())
    assert int(inside.measured) == 8 and float(inside.std.min()) > 0


def test_the_commands_of_readme_are_understood():
    text = (Path(__file__).parents[1] / "README.md").read_text()
    lines = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("medgen import ")]
    assert len(lines) >= 2
    for words in lines:
        options = parser().parse_args(words)
        assert intensity_rule(options.intensity)["typical"]["high"] == 255
    assert options.size == [160, 224, 160] and options.autoencoder == "bundle/vae.pt"


def test_shift_and_spread_of_the_latent_images():
    x = torch.tensor([0.5, -1.0])
    for config in (
        {"scaling_factor": 0.3, "shift_factor": 0.1},
        {"scaling_factor": 0.3, "latents_mean": [0.1, 0.2], "latents_std": [2.0, 3.0]},
    ):
        mean, std = latent_scaling(config, 2)
        shift = torch.tensor(config.get("latents_mean", [0.1, 0.1]))
        torch.testing.assert_close((x - mean) / std, (x - shift) * 0.3 / torch.tensor(config.get("latents_std", [1.0, 1.0])))
    with pytest.raises(MedgenError, match="--scale-factor"):
        latent_scaling({}, 2)


class Trap:
    """Unpickling it would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_is_executed(tmp_path, capsys):
    bundle(tmp_path / "bundle")
    config = tmp_path / "bundle" / "inference.json"
    torch.save({"a": Trap(tmp_path / "trapped")}, tmp_path / "trap.pt")
    said = refused(capsys, tmp_path / "trap.pt", "-o", tmp_path / "a", "--config", config, *PICTURE)
    assert "cannot be read as plain tensors" in said and not (tmp_path / "trapped").exists()
    document = json.loads(config.read_text())
    document["network_def"]["channels"] = "$open('trapped', 'w')"
    config.write_text(json.dumps(document))
    said = refused(capsys, tmp_path / "bundle" / "unet.pt", "-o", tmp_path / "a", "--config", config, *PICTURE)
    assert "'channels' is the expression" in said and "does not run" in said
    document["network_def"]["channels"] = "@network_def::channels"  # refers to itself
    config.write_text(json.dumps(document))
    assert "does not run" in refused(capsys, tmp_path / "bundle" / "unet.pt", "-o", tmp_path / "a", "--config", config, *PICTURE)


def test_what_cannot_be_imported_is_refused_in_a_sentence(tmp_path, capsys):
    def say(*arguments: object) -> str:
        return refused(capsys, arguments[0], "-o", tmp_path / "out", *(arguments[1:] or PICTURE))

    assert "expected a folder of diffusers" in say(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "expected config.json" in say(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    assert "holds a UNet2DConditionModel" in say(tmp_path / "empty")
    pipeline(tmp_path / "p", DDIMScheduler(trained_betas=[0.1, 0.2]))
    assert "no beta schedule by name" in say(tmp_path / "p")
    pipeline(tmp_path / "p", DDIMScheduler(), in_channels=2)
    assert "2 channels beside the sources, --target names 1" in say(tmp_path / "p")
    pipeline(tmp_path / "p", DDIMScheduler(), out_channels=2)
    assert "1 channels to 2, expected 1 to 1" in say(tmp_path / "p")
    pipeline(tmp_path / "p", DDIMScheduler())
    assert "give --size" in say(tmp_path / "p", "--target", "t1")
    assert "need --spacing" in say(tmp_path / "p", *PICTURE, "--slice-axis", "2")
    assert "expected NAME or NAME=LOW,HIGH" in say(tmp_path / "p", *PICTURE, "--intensity", "ct_hu=3")
    weights = tmp_path / "p" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({"conv_in.bias": torch.zeros(4)}, weights)
    assert "is missing" in say(tmp_path / "p")
    weights.unlink()
    assert "diffusers cannot load this UNet2DModel" in say(tmp_path / "p")
    bundle(tmp_path / "b", latent=False)
    torch.save({"a": torch.zeros(1)}, tmp_path / "b" / "other.pt")
    config = ("--config", tmp_path / "b" / "inference.json")
    assert "give --config" in say(tmp_path / "b" / "unet.pt", *PICTURE)
    assert "no weights of MONAI's" in say(tmp_path / "b" / "other.pt", *PICTURE, *config)
    (tmp_path / "b" / "inference.json").write_text(json.dumps({"net": {"_target_": "monai.networks.nets.UNet"}}))
    assert "defines no DiffusionModelUNet" in say(tmp_path / "b" / "unet.pt", *PICTURE, *config)
    assert not (tmp_path / "out").exists()


def in_one_sentence(said: str) -> bool:
    return said.startswith("error: ") and said.count("\n") == 1


def rewrite(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("file", "values", "expected"),
    [
        ("scheduler/scheduler", {"beta_start": "0.1"}, "beta_start is '0.1'; expected a number"),
        ("scheduler/scheduler", {"beta_end": float("nan")}, "beta_end is nan; expected a number"),
        ("scheduler/scheduler", {"num_train_timesteps": "x"}, "num_train_timesteps is 'x'; expected a whole number"),
        ("scheduler/scheduler", {"num_train_timesteps": 10**12}, "num_train_timesteps is 1000000000000; expected a whole number"),
        ("scheduler/scheduler", {"rescale_betas_zero_snr": "false"}, "rescale_betas_zero_snr is 'false'; expected true or false"),
        ("scheduler/scheduler", {"beta_schedule": ["linear"]}, "no beta schedule '['linear']'; did you mean 'linear'"),
        ("scheduler/scheduler", {"beta_schedule": {"a": 1}}, "no beta schedule '{'a': 1}'"),
        ("scheduler/scheduler", {"prediction_type": ["epsilon"]}, "no prediction type '['epsilon']'; did you mean 'epsilon'"),
        ("scheduler/scheduler", {"_class_name": ["DDIMScheduler"]}, "diffusers has no '['DDIMScheduler']'"),
        ("scheduler/scheduler", {"clip_sample_range": float("inf")}, "Out of range float"),
        ("unet/", {"in_channels": "3"}, "in_channels is '3'; expected a positive whole number"),
        ("unet/", {"block_out_channels": 8}, "block_out_channels is 8; expected a list of positive whole numbers"),
        ("unet/", {"block_out_channels": [4, "8"]}, "block_out_channels is [4, '8']; expected a list"),
        ("unet/", {"num_class_embeds": "2"}, "num_class_embeds is '2'; expected a whole number or null"),
        ("unet/", {"sample_size": "ab"}, "sample_size is 'ab'; expected a positive whole number"),
        ("unet/", {"down_block_types": 3}, "diffusers cannot load this UNet2DModel"),
        ("unet/", {"norm_num_groups": "4"}, "diffusers cannot load this UNet2DModel"),
        ("unet/", {"class_embed_type": ["timestep"]}, "cannot be imported"),
        ("vae/", {"latent_channels": True}, "latent_channels is True; expected a positive whole number"),
        ("vae/", {"scaling_factor": "a"}, "scaling factor is 'a'; expected one positive number"),
        ("vae/", {"scaling_factor": float("nan")}, "scaling factor is nan; expected one positive number"),
        ("vae/", {"scaling_factor": 0}, "scaling factor is 0; expected one positive number"),
        ("vae/", {"scaling_factor": -1.0}, "scaling factor is -1.0; expected one positive number"),
        ("vae/", {"scaling_factor": 10**400}, "scaling factor is 1000"),
        ("vae/", {"scaling_factor": 1e-45}, "expected finite positive numbers"),
        ("vae/", {"shift_factor": "a"}, "shift_factor is 'a'; expected a number or null"),
        ("vae/", {"latents_mean": "abc"}, "latents_mean is 'abc'; expected a list of 3 numbers"),
        ("vae/", {"latents_mean": [0.0, 1.0]}, "latents_mean is [0.0, 1.0]; expected a list of 3 numbers"),
        ("vae/", {"latents_std": 0}, "latents_std is 0; expected a list of 3 numbers"),
        ("vae/", {"latents_std": [1.0, 0.0, 1.0]}, "latents_std is [1.0, 0.0, 1.0]; expected positive numbers"),
    ],
)
def test_a_value_of_diffusers_that_does_not_fit_is_refused_in_a_sentence(tmp_path, capsys, file, values, expected):
    pipeline(tmp_path / "p", DDIMScheduler(**SCHEDULER), latent=True)
    rewrite(tmp_path / "p" / f"{file}{'_' if file[-1] != '/' else ''}config.json", **values)
    said = refused(capsys, tmp_path / "p", "-o", tmp_path / "out", *PICTURE)
    assert expected in said and in_one_sentence(said) and not (tmp_path / "out").exists()


def import_bundle(capsys, folder: Path, config: str = "inference.json", *options: str) -> str:
    files = ["--config", folder / config, "--autoencoder", folder / "vae.safetensors"]
    said = refused(capsys, folder / "unet.pt", "-o", folder / "out", *PICTURE, *files, *options)
    assert in_one_sentence(said) and not (folder / "out").exists()
    return said


@pytest.mark.parametrize(
    ("part", "values", "expected"),
    [
        ("network_def", {"in_channels": "1"}, "in_channels is '1'; expected a positive whole number"),
        ("network_def", {"channels": 8}, "channels is 8; expected a list of positive whole numbers"),
        ("network_def", {"num_res_blocks": [1, None]}, "num_res_blocks is [1, None]; expected 1 to 100 blocks"),
        ("network_def", {"num_res_blocks": 10**9}, "num_res_blocks is 1000000000; expected 1 to 100 blocks"),
        ("network_def", {"norm_num_groups": "4"}, "cannot be built from these settings"),
        ("network_def", {"attention_levels": [[]]}, "cannot be built from these settings"),
        ("autoencoder_def", {"channels": "8"}, "channels is '8'; expected a list"),
        ("scheduler", {"schedule": ["linear_beta"]}, "no beta schedule '['linear_beta']'"),
        ("scheduler", {"beta_start": "0.1"}, "beta_start is '0.1'; expected a number"),
        ("scheduler", {"prediction_type": {}}, "no prediction type '{}'"),
    ],
)
def test_a_value_of_monai_that_does_not_fit_is_refused_in_a_sentence(tmp_path, capsys, part, values, expected):
    bundle(tmp_path / "b")
    config = tmp_path / "b" / "inference.json"
    document = json.loads(config.read_text())
    config.write_text(json.dumps({**document, part: {**document[part], **values}}))
    assert expected in import_bundle(capsys, tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"unet_state_dict": {0: torch.zeros(1), 1: torch.zeros(1)}}, "a tensor under 0; expected names as text"),
        ({"scale_factor": torch.ones(3)}, "scaling factor is of shape [3]; expected one positive number"),
        ({"scale_factor": "half"}, "scaling factor is 'half'; expected one positive number"),
        ({"scale_factor": torch.tensor(float("inf"))}, "scaling factor is inf; expected one positive number"),
        ({"scale_factor": torch.tensor(1j)}, "scaling factor is 1j; expected one positive number"),
    ],
)
def test_stored_tensors_that_do_not_fit_are_refused_in_a_sentence(tmp_path, capsys, change, expected):
    bundle(tmp_path / "b")
    stored = torch.load(tmp_path / "b" / "unet.pt", weights_only=True)
    torch.save({**stored, **change}, tmp_path / "b" / "unet.pt")
    assert expected in import_bundle(capsys, tmp_path / "b")


def test_a_scale_factor_of_the_command_line_replaces_a_wrong_one(tmp_path, capsys):
    bundle(tmp_path / "b")
    stored = torch.load(tmp_path / "b" / "unet.pt", weights_only=True)
    torch.save({**stored, "scale_factor": "half"}, tmp_path / "b" / "unet.pt")
    assert "scaling factor is nan" in import_bundle(capsys, tmp_path / "b", "inference.json", "--scale-factor", "nan")
    files = ["--config", tmp_path / "b" / "inference.json", "--autoencoder", tmp_path / "b" / "vae.safetensors", "--scale-factor", "0.5"]
    assert load(imported(tmp_path / "a", tmp_path / "b" / "unet.pt", *PICTURE, *map(str, files))).model.codec.std.tolist() == [2.0] * 3


FAN = {f"a{i}": [f"@a{i + 1}"] * 10 for i in range(7)} | {"a7": [1] * 10}  # 10^8 values
FAN["n"] = {"_target_": "DiffusionModelUNet", "channels": "@a0"}
ALIASES = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
BOUNDS = "nests more than 100 deep or unfolds to more than 100000 values"


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("c.json", '{"a":' * 50_000 + "1" + "}" * 50_000, "cannot be read (maximum recursion depth"),
        ("c.json", '{"a":' * 200 + "1" + "}" * 200, BOUNDS),
        ("c.json", '{"a":' + "[" * 200 + "]" * 200 + "}", BOUNDS),
        ("c.yaml", "a: " + "[" * 1_000 + "]" * 1_000, "cannot be read (maximum recursion depth"),
        ("c.yaml", "a: &a [*a]", BOUNDS),
        ("c.yaml", ALIASES, BOUNDS),
        ("c.yaml", "a: !!timestamp later", "cannot be read"),
        ("c.json", json.dumps(FAN), "the references in 'channels' unfold to"),
        ("c.yaml", "n: {_target_: DiffusionModelUNet, 1: 2}", "has no argument '1'"),
    ],
    ids=lambda value: value[:12],
)
def test_a_document_without_bounds_is_refused_in_a_sentence(tmp_path, capsys, file, text, expected):
    bundle(tmp_path / "b")
    (tmp_path / "b" / file).write_text(text)
    assert expected in import_bundle(capsys, tmp_path / "b", file)
