"""What the rasteriser is used for: frozen geometry, its transpose, densification, several threads, and errors."""

import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
from splat_scenes import NAMES, cloud, ours, reference, relative

from maskfield_ns.errors import SplatError
from maskfield_ns.splatting import accumulate, prepare_view, rasterize_features
from maskfield_ns.splatting.compiling import cache_folder


def prepare(scene, **options):
    geometry = [getattr(scene, n) for n in NAMES[:4]]
    return prepare_view(*geometry, scene.viewmats[0], scene.Ks[0], scene.width, scene.height, **options)


@pytest.mark.parametrize("keep_weights", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 16, 21])
def test_features_of_a_prepared_view(channels, keep_weights):
    """Same image, same gradient of the features as the full rasteriser; the geometry gets none."""
    scene = cloud(100, channels=channels, seed=20)
    leaves = scene.leaves()
    background = torch.rand(channels)
    image, alphas, _ = ours(replace(scene, backgrounds=background[None]), leaves)
    features = scene.colors.clone().requires_grad_()
    view = prepare(scene, keep_weights=keep_weights)
    again, again_alphas = rasterize_features(view, features, background)
    assert relative(again, image[0]) < 1e-6 and torch.equal(again_alphas, alphas[0])
    pull = torch.randn(again.shape)
    (image[0] * pull).sum().backward()
    (again * pull).sum().backward()
    assert relative(features.grad, leaves["colors"].grad) < 1e-6
    assert not again_alphas.requires_grad


@pytest.mark.parametrize("keep_weights", [False, True])
def test_accumulate_is_the_exact_transpose(keep_weights):
    scene = cloud(100, seed=21)
    view = prepare(scene, keep_weights=keep_weights)
    features, values = torch.randn(100, 6), torch.randn(scene.height, scene.width, 6)
    image, alphas = rasterize_features(view, features)
    sums, weights = accumulate(view, values)
    left, right = (image.double() * values).sum(), (features.double() * sums).sum()
    assert abs(left - right) < 1e-5 * (image * values).abs().sum()
    table = reference(scene, scene.leaves(torch.float64))[2]["weights"].detach()
    assert relative(sums, table.T @ values.reshape(-1, 6).double()) < 1e-5
    assert relative(weights, table.sum(0)) < 1e-5
    assert abs(weights.sum() - alphas.sum()) < 1e-4 * alphas.sum()
    assert not weights[view.radii == 0].any()


@pytest.mark.parametrize("keep_weights", [False, True])
def test_prepared_view_of_nothing(keep_weights):
    view = prepare(cloud(0), keep_weights=keep_weights)
    image, alphas = rasterize_features(view, torch.zeros(0, 4))
    assert image.shape == (29, 37, 4) and not image.any() and not alphas.any()
    sums, weights = accumulate(view, torch.ones(29, 37, 2))
    assert sums.shape == (0, 2) and weights.shape == (0,)


def test_one_and_two_threads_agree_exactly():
    scene = cloud(300, channels=16, width=90, height=70, seed=22)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            leaves = scene.leaves()
            image, _, info = ours(scene, leaves, absgrad=True)
            image.square().sum().backward()
            results.append([image, info["means2d"].absgrad, *(leaf.grad for leaf in leaves.values())])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_beside_another_python_thread():
    """A viewer renders while training runs; each must get its own picture."""
    scenes = [cloud(200, channels=d, width=60, height=50, seed=23 + d) for d in (3, 8)]
    expected = [ours(scene, scene.leaves())[0].detach() for scene in scenes]
    before = torch.get_num_threads()
    wrong = []

    def work(scene, image):
        for _ in range(15):
            leaves = scene.leaves()
            again = ours(scene, leaves)[0]
            again.sum().backward()
            if not torch.equal(again, image) or not torch.isfinite(leaves["means"].grad).all():
                wrong.append(scene)

    try:
        torch.set_num_threads(2)
        threads = [threading.Thread(target=work, args=pair) for pair in zip(scenes, expected, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        torch.set_num_threads(before)
    assert not wrong


@pytest.mark.parametrize("absgrad", [False, True])
def test_default_strategy_reads_info(absgrad):
    # gsplat's MCMCStrategy reads nothing from info, and its own steps need CUDA
    from gsplat.strategy import DefaultStrategy

    scene = cloud(60, seed=26)
    parameters = {n: torch.nn.Parameter(getattr(scene, n).clone()) for n in NAMES}
    parameters["scales"].data.log_()
    parameters["opacities"].data = torch.logit(parameters["opacities"].data)
    optimizers = {n: torch.optim.Adam([{"params": p, "lr": 1e-3, "name": n}]) for n, p in parameters.items()}

    def step(strategy, state, number):
        leaves = parameters | {"scales": parameters["scales"].exp(), "opacities": parameters["opacities"].sigmoid()}
        image, _, info = ours(scene, leaves, absgrad=absgrad)
        strategy.step_pre_backward(parameters, optimizers, state, number, info)
        image.square().mean().backward()
        return info

    strategy = DefaultStrategy(absgrad=absgrad, refine_start_iter=1, refine_every=2, grow_grad2d=1e-7)
    strategy.check_sanity(parameters, optimizers)
    state = strategy.initialize_state()
    info = step(strategy, state, 1)
    strategy.step_post_backward(parameters, optimizers, state, 1, info)
    gradient = info["means2d"].absgrad[0] if absgrad else info["means2d"].grad[0]
    pixels = gradient * torch.tensor([scene.width / 2, scene.height / 2])
    assert torch.allclose(state["grad2d"], pixels.norm(dim=-1))
    assert torch.equal(state["count"], (info["radii"][0] > 0).float())
    info = step(strategy, state, 2)
    strategy.step_post_backward(parameters, optimizers, state, 2, info)
    assert len(parameters["means"]) > 60
    assert step(strategy, state, 3)["radii"].shape == (1, len(parameters["means"]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(name, value):
    scene = cloud(20)
    leaves = {n: getattr(scene, n).clone() for n in NAMES}
    leaves[name][3] = value
    leaves[name][7] = value
    with pytest.raises(SplatError, match=f"2 of 20 Gaussians .*`{name}`"):
        ours(scene, leaves)
    if name != "colors":
        with pytest.raises(SplatError, match=f"`{name}`"):
            prepare(replace(scene, **leaves))


def test_large_finite_values_are_no_error():
    scene = cloud(20)
    leaves = scene.leaves()
    leaves["colors"] = torch.full((20, 3), 2e38)
    ours(scene, leaves)
    leaves = scene.leaves()
    leaves["scales"] = torch.full((20, 3), 1e30)  # projects to infinity: not drawn
    assert torch.isfinite(ours(scene, leaves)[0]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quats": torch.zeros(20, 3)}, r"`quats` has shape \[20, 3\]; expected \[20, 4\]"),
        ({"opacities": torch.zeros(20, 1)}, "`opacities` has shape"),
        ({"colors": torch.zeros(19, 3)}, "`colors` has shape"),
        ({"colors": torch.zeros(20, 0)}, "no channels"),
        ({"means": torch.zeros(20, 3, dtype=torch.int64)}, "int64"),
        ({"scales": [1, 2, 3]}, "not list"),
        ({"quats": torch.zeros(20, 4, device="meta")}, "one device"),
    ],
)
def test_wrong_tensors_are_named(change, message):
    scene = cloud(20)
    with pytest.raises(SplatError, match=message):
        ours(scene, scene.leaves() | change)


def test_wrong_options_are_named():
    scene = cloud(20)
    for options, message in (
        ({"render_mode": "depth"}, "RGB"),
        ({"rasterize_mode": "sharp"}, "antialiased"),
        ({"packed": True}, "CUDA"),
    ):
        with pytest.raises(SplatError, match=message):
            ours(scene, scene.leaves(), **options)
    with pytest.raises(SplatError, match="coefficients"):
        ours(scene, scene.leaves() | {"colors": torch.zeros(20, 4, 3)}, sh_degree=2)
    with pytest.raises(SplatError, match="positive"):
        ours(replace(scene, width=0), scene.leaves())
    with pytest.raises(SplatError, match="focal"):
        ours(replace(scene, Ks=-scene.Ks), scene.leaves())
    with pytest.raises(SplatError, match="viewmats"):
        ours(replace(scene, viewmats=scene.viewmats * float("nan")), scene.leaves())
    with pytest.raises(SplatError, match="features"):
        rasterize_features(prepare(scene), torch.zeros(19, 2))
    with pytest.raises(SplatError, match="values"):
        accumulate(prepare(scene), torch.zeros(3, 3, 1))
    with pytest.raises(SplatError, match="NaN"):
        accumulate(prepare(scene), torch.full((29, 37, 1), float("nan")))


def test_kernels_are_kept_where_this_user_can_write(tmp_path, monkeypatch):
    find = cache_folder.__wrapped__
    monkeypatch.setenv("MASKFIELD_HOME", str(tmp_path / "home"))
    assert find().parent == tmp_path / "home"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MASKFIELD_HOME", str(tmp_path / "file"))
    assert find().is_dir() and tmp_path not in find().parents
    if hasattr(os, "getuid"):
        open_to_all = tmp_path / "open" / find().name
        open_to_all.mkdir(parents=True)
        open_to_all.chmod(0o777)
        monkeypatch.setenv("MASKFIELD_HOME", str(tmp_path / "open"))
        assert find() != open_to_all


def test_import_loads_no_compiler():
    code = (
        "import sys, maskfield_ns.splatting; "
        "print([m for m in ('numba', 'llvmlite', 'gsplat', 'nerfstudio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
