"""Networks by name and by their weights, inputs as the weights were trained with, features of every layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers_curate import settings, write_pair
from safetensors.torch import save_file
from torch import nn

from avssl_core.encoders import FactorisedVideoNet, R2Plus1D, SpectrogramResNet, small
from avssl_core.media import MediaReader
from avssl_core.training.checkpoint import save_checkpoint
from avssl_core.transforms import ClipEval, LogMelSpectrogram
from data_prep.curate import Choice, CurateError, curate_folder
from data_prep.curate.networks import AudioExtractor, VideoExtractor, build_extractor, chosen


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pair(tmp_path_factory.mktemp("film") / "a.mp4", 1, 2)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the GDT chapter's run leaves it."""
    folder = tmp_path_factory.mktemp("run")
    context = {"context.num_frames": 4, "context.crop": 24, "context.decode_size": 28, "context.n_mels": 32, "steps": 1}
    model = small(seed=3, width=4, audio_width=4, embedding_dim=8)
    save_checkpoint(folder, {"step": 1, "identity": context, "model": model.state_dict()})
    return folder


@pytest.mark.parametrize(
    ("modality", "network", "layers"),
    [
        ("video", R2Plus1D(4, (1, 2, 1, 1)), 5),
        ("video", R2Plus1D(4, (1, 1), "gn", temporal_strides=(1, 2)), 3),
        ("video", FactorisedVideoNet(4, 2, 12, blocks=(0, 1, 2, 1)), 5),
        ("audio", SpectrogramResNet(4, (2, 1, 1, 1), "gn"), 5),
    ],
)
def test_sizes_follow_from_the_weights(tmp_path: Path, modality: str, network: nn.Module, layers: int) -> None:
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    found = build_extractor(chosen(Choice(modality, weights=str(tmp_path / "w.safetensors"))))  # type: ignore[arg-type]
    x = torch.rand(2, 3, 4, 48, 48) if modality == "video" else torch.rand(2, 1, 40, 99)
    features = found.features(x)  # type: ignore[attr-defined]
    assert list(features) == list(found.layers) and len(features) == layers
    with torch.no_grad():
        torch.testing.assert_close(features[found.layers[-1]], network.eval()(x))
    assert all(values.shape[0] == 2 and values.ndim == 2 for values in features.values())


def test_a_checkpoint_of_a_run_brings_both_networks_and_their_inputs(run_dir: Path, film: Path) -> None:
    weights = str(run_dir / "checkpoint.pt")
    video, audio = (build_extractor(chosen(Choice(modality, weights=weights))) for modality in ("video", "audio"))  # type: ignore[arg-type]
    assert isinstance(video, VideoExtractor) and isinstance(audio, AudioExtractor)
    assert video.window_s == audio.window_s == 0.5
    with MediaReader(film) as reader:
        frames, wave = video.read(reader, 0.2), audio.read(reader, 0.2)
    assert frames.shape == (3, 4, 28, 28) and wave.shape == (8000,)
    model = small(seed=3, width=4, audio_width=4, embedding_dim=8).eval()
    with torch.no_grad():
        sight = model.video.encoder(ClipEval(24)(frames[None]))
        sound = model.audio.encoder(LogMelSpectrogram(sample_rate=16_000, n_mels=32, n_fft=512)(wave[None]))
    torch.testing.assert_close(video(frames[None])["final"], sight)
    torch.testing.assert_close(audio(wave[None])["stages.3"], sound)


def test_weights_of_something_else_are_refused(run_dir: Path, tmp_path: Path) -> None:
    weights = str(run_dir / "checkpoint.pt")
    with pytest.raises(CurateError, match=r"holds the weights of factorised, not of r2plus1d; leave the name out"):
        build_extractor(chosen(Choice("video", "r2plus1d", weights)))
    save_file(SpectrogramResNet(4).state_dict(), tmp_path / "audio.safetensors")
    with pytest.raises(CurateError, match="does not hold a video network of this book"):
        build_extractor(chosen(Choice("video", weights=str(tmp_path / "audio.safetensors"))))
    (tmp_path / "words.pt").write_text("no weights")
    with pytest.raises(CurateError, match="cannot be read as tensors alone"):
        build_extractor(chosen(Choice("audio", weights=str(tmp_path / "words.pt"))))
    broken = SpectrogramResNet(4).state_dict()
    del broken["stages.3.1.conv2.weight"]
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(CurateError, match="does not fit resnet9"):
        build_extractor(chosen(Choice("audio", weights=str(tmp_path / "broken.safetensors"))))


def test_weights_that_are_not_here_say_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(CurateError, match=r"r3d_18 are not on this machine; get https://.* and put it at .*r3d_18-"):
        chosen(Choice("video", "r3d_18"))


def test_a_torchvision_network_goes_by_name(film: Path) -> None:
    network = build_extractor(chosen(Choice("video", "mc3_18", random=True)))
    assert isinstance(network, VideoExtractor) and network.inputs.kinetics
    features = network(torch.randint(0, 256, (1, 3, 2, 32, 32), dtype=torch.uint8))
    assert [values.shape[1] for values in features.values()] == [64, 64, 128, 256, 512]
    seen: list[torch.Tensor] = []
    network.network.register_forward_pre_hook(lambda module, x: seen.append(x[0]))
    network(torch.zeros(1, 3, 2, 8, 8, dtype=torch.uint8))
    mean, std = torch.tensor([0.43216, 0.394666, 0.37645]), torch.tensor([0.22803, 0.22145, 0.216989])
    torch.testing.assert_close(seen[0].mean(dim=(0, 2, 3, 4)), -mean / std)


def test_random_weights_are_a_function_of_the_seed() -> None:
    x = torch.rand(1, 8000)
    first, again, other = (build_extractor(chosen(Choice("audio", random=True, seed=s)))(x) for s in (1, 1, 2))
    assert torch.equal(first["stages.3"], again["stages.3"]) and not torch.equal(first["stages.3"], other["stages.3"])


def test_other_weights_under_the_same_name_are_noticed(tmp_path: Path) -> None:
    """What lies in a file decides, not what it is called or where it lies."""
    for number in range(2):
        write_pair(tmp_path / "films" / f"{number}.mp4", number, number, number=number)
    weights = tmp_path / "w.safetensors"
    again = tmp_path / "copy.safetensors"

    def stages(path: Path) -> tuple[str, ...]:
        how = settings(audio=Choice("audio", weights=str(path)), clusters=2)
        return curate_folder(tmp_path / "films", tmp_path / "out", how, workers=0, progress=False).ran

    for seed, ran in ((0, 7), (0, 0), (1, 4)):
        torch.manual_seed(seed)
        save_file(SpectrogramResNet(4, (1, 1, 1, 1)).state_dict(), weights)
        again.write_bytes(weights.read_bytes())
        assert len(stages(weights)) == ran
    assert stages(again) == ()
