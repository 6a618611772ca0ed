"""Laws of models.py: amounts, noise, tiles, losses, critics. Small random networks; no data files."""

import hashlib
import math
from dataclasses import asdict
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import lr_rain as rain
from conftest import make, whole_field

import models
import operations
from models import (
    ADVERSARIAL_LOSSES,
    TRANSFORMS,
    ConModel,
    DirectedNoise,
    Discriminator,
    Generator,
    GeneratorConfig,
    ResModel,
    SRConModel,
    SRGANDiscriminator,
    SRResModel,
    TruncatedVGG19,
    conserve_mass,
    content_loss,
    even_levels,
    fair_crps,
    gradient_penalty,
    initialise_normal,
    load_generator,
    structure_score,
)
from settings import prime_factors


def as_batch(lr):
    return torch.from_numpy(lr)[None, None]


def source(seed):
    return torch.Generator().manual_seed(seed)


# ---- layout ----


@pytest.mark.parametrize(("scale", "factors"), [(100, [5, 5, 2, 2]), (40, [5, 2, 2, 2]), (4, [2, 2]), (7, [7])])
def test_one_stage_for_each_prime_factor_the_largest_first(scale, factors):
    assert prime_factors(scale) == factors[::-1]
    net = SRResModel(GeneratorConfig(scale=scale, channels=16, blocks=1, noise_channels=2))
    assert [stage.factor for stage in net.ups] == factors


def test_no_stage_holds_most_of_the_weights():
    net = SRResModel(GeneratorConfig())
    sizes = [sum(p.numel() for p in stage.parameters()) for stage in net.ups]
    assert max(sizes) < 0.5 * sum(p.numel() for p in net.parameters())


def test_upsampling_stage_ends_in_relu_as_documented():
    stage = SRConModel(8, 8, 2)
    x = torch.randn(2, 8, 4 + 2 * stage.margin_in, 4 + 2 * stage.margin_in)
    made = stage(x, torch.randn(2, 1, 10, 10))
    assert made.min() == 0
    assert made.shape == (2, 8, 8, 8)


def test_activations_are_applied():
    block = ConModel(1, 1, 1, activation="relu")
    with torch.no_grad():
        block.layers[0].weight.fill_(-1.0)
        block.layers[0].bias.fill_(0.0)
    assert block(torch.ones(1, 1, 3, 3)).max() == 0


def test_residual_block_adds_to_its_input():
    block = ResModel(4)
    for p in block.parameters():
        torch.nn.init.zeros_(p)
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(block(x), x)


def test_checkpoint_size_stays_committable():
    assert sum(p.numel() for p in Generator(GeneratorConfig()).parameters()) < 1e6  # 4 MB in float32


def test_bad_settings_name_what_is_known():
    with pytest.raises(ValueError, match="prelu"):
        GeneratorConfig(activation="PReLu")
    with pytest.raises(ValueError, match="4 stages"):
        GeneratorConfig(scale=100, stage_channels=(16, 16))
    with pytest.raises(ValueError, match="position_shape"):
        GeneratorConfig(position_channels=2)


# ---- amounts ----


@pytest.mark.parametrize("scale", [100, 40, 4])
@pytest.mark.parametrize("output", ["softplus", "exp"])
def test_block_means_are_the_input(scale, output):
    lr = as_batch(rain(3, 2))
    sr = make(scale, output=output)(lr)
    assert sr.shape == (1, 1, 3 * scale, 2 * scale)
    assert sr.min() >= 0
    torch.testing.assert_close(F.avg_pool2d(sr, scale), lr, rtol=1e-5, atol=1e-5)


def test_dry_cells_give_exactly_zero():
    lr = torch.tensor([[[[0.0, 5.0], [0.3, 0.0]]]])
    sr = make()(lr)
    assert sr[..., :4, :4].abs().max() == 0
    assert sr[..., 4:, 4:].abs().max() == 0
    assert sr[..., :4, 4:].max() > 0


def test_pixels_below_the_threshold_are_dry():
    raw = torch.full((1, 1, 4, 4), 1.2)
    raw[..., 0, 0] = 1e-4
    sr = conserve_mass(raw.log(), torch.ones(1, 1, 1, 1), 4)
    assert sr[0, 0, 0, 0] == 0
    assert sr[0, 0, 1:].min() > 0


@pytest.mark.parametrize("level", [-1e4, 0.0, 1e4])
def test_an_even_block_shares_its_rain_evenly(level):
    sr = conserve_mass(torch.full((1, 1, 4, 4), level), torch.full((1, 1, 1, 1), 8.0), 4)
    torch.testing.assert_close(sr, torch.full((1, 1, 4, 4), 8.0))


@pytest.mark.parametrize("amount", [0.0, 1e-6, 0.015, 700.0, 1e5])
@pytest.mark.parametrize("output", ["softplus", "exp"])
@pytest.mark.parametrize("conserve", [True, False])
def test_gradients_are_finite(amount, output, conserve):
    generator = make(output=output, conserve=conserve)
    sr = generator(torch.full((1, 1, 3, 3), amount))
    sr.square().mean().backward()
    assert torch.isfinite(sr).all()
    assert all(torch.isfinite(p.grad).all() for p in generator.parameters() if p.grad is not None)


def test_extreme_weights_do_not_overflow():
    generator = make(output="exp")
    with torch.no_grad():
        generator.net.outs[-1].weight.mul_(1e6)
    sr = generator(torch.full((1, 1, 2, 2), 700.0))
    assert torch.isfinite(sr).all()
    torch.testing.assert_close(F.avg_pool2d(sr, 4), torch.full((1, 1, 2, 2), 700.0), rtol=1e-4, atol=0)


def test_no_step_at_cell_edges():
    """A smooth field over cells of 1 and 9 mm: the step is a small part of what one factor a cell leaves."""
    x = torch.linspace(-1, 1, 80).sigmoid()
    logs, lr = x.expand(1, 1, 40, 80), torch.tensor([[[[1.0, 9.0]]]])
    step = lambda sr: (sr[..., 40] / sr[..., 39]).log().abs().mean()  # noqa: E731
    evened = conserve_mass(even_levels(logs, lr, 40), lr, 40)
    assert step(evened) < 0.35 * step(conserve_mass(logs, lr, 40))
    torch.testing.assert_close(F.avg_pool2d(evened, 40), lr, rtol=1e-5, atol=1e-5)


def test_without_conservation_amounts_are_free():
    lr = torch.full((1, 1, 2, 2), 10.0)
    sr = make(conserve=False)(lr)
    assert (F.avg_pool2d(sr, 4) - lr).abs().min() > 1


def test_autocast_keeps_amounts_in_float32():
    generator, lr = make(40), as_batch(rain(3, 3))
    with torch.autocast("cpu", torch.bfloat16):
        sr = generator(lr)
    assert sr.dtype == torch.float32
    torch.testing.assert_close(F.avg_pool2d(sr, 40), lr, rtol=1e-5, atol=1e-5)


# ---- noise, parts and tiles ----


def test_one_seed_is_one_member():
    generator, lr = make(), as_batch(rain(3, 4))
    draw = lambda seed: generator(lr, generator.draw_noise(1, (3, 4), None, source(seed)))  # noqa: E731
    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_without_noise_channels_it_is_deterministic():
    generator, lr = make(noise_channels=0), as_batch(rain(3, 4))
    assert torch.equal(generator(lr), generator(lr))
    a = whole_field(generator, rain(3, 4), members=2)
    assert np.array_equal(a[0], a[1])


def test_noise_enters_at_every_grid():
    """The noise of each grid alone changes the member, the trunk's too; block means stay."""
    generator, lr = make(), as_batch(rain(3, 4))
    noise = generator.draw_noise(1, (3, 4), None, source(0))
    (m1, m2), reach = generator.net.margins, models.REACH - 1
    sides = [(3, 4), (6 + 2 * (m1 + reach), 8 + 2 * (m1 + reach)), (12 + 2 * (m2 + reach), 16 + 2 * (m2 + reach))]
    assert [tuple(z.shape) for z in noise] == [(1, 2, *side) for side in sides]
    plain = generator(lr, noise)
    for k in range(3):
        other = generator(lr, [*noise[:k], torch.randn(noise[k].shape, generator=source(1)), *noise[k + 1 :]])
        assert not torch.allclose(other, plain, rtol=1e-3)
        torch.testing.assert_close(F.avg_pool2d(other, 4), lr, rtol=1e-5, atol=1e-5)


def test_detail_can_be_stopped_at_a_coarser_grid():
    """As coarse steps of a training do: rain of a quarter of HR's side, whose block means are the input."""
    generator, lr, box = make(20), as_batch(rain(4, 5)), (1, 3, 0, 4)
    assert generator.net.grids[generator.config.coarse] == 5
    noise = generator.draw_noise(1, (4, 5), box, stages=generator.config.coarse)
    made = generator.finish(lr, generator.detail(*generator.encode(lr, noise[0]), noise[1:], box), box)
    assert made.shape == (1, 1, 10, 20)
    torch.testing.assert_close(F.avg_pool2d(made, 5), lr[..., 1:3, 0:4], rtol=1e-5, atol=1e-5)


def pointing(angle, concentration=6.0):
    """Flow (2, 1, 1) along `angle`, from the direction of the columns towards that of the rows."""
    return concentration * torch.tensor([math.cos(2 * angle), math.sin(2 * angle)]).view(2, 1, 1)


def direction(field):
    """(angle along which a field (..., h, w) varies least, coherence 0..1): of its structure tensor."""
    y, x = torch.gradient(field, dim=(-2, -1))
    xx, yy, xy = (x * x).mean(), (y * y).mean(), (x * y).mean()
    return (0.5 * math.atan2(2 * xy, xx - yy) + math.pi / 2) % math.pi, float((xx - yy).hypot(2 * xy) / (xx + yy))


def test_directed_noise_keeps_the_variance_of_noise():
    lay = DirectedNoise()
    noise = torch.randn(4, 2, 180, 180, generator=source(0))
    for flow in (torch.zeros(2, 160, 160), pointing(0.7), 3 * torch.randn(2, 160, 160, generator=source(1))):
        made = lay(noise, flow.expand(4, 2, 160, 160))
        assert made.shape == (4, 2, 160, 160) and abs(made.mean()) < 0.05 and abs(made.var() - 1) < 0.05


def test_lines_of_directed_noise_hold_no_subnormal_numbers():
    lines = DirectedNoise().lines
    tiny = torch.finfo(torch.float32).tiny
    assert (lines == 0).any() and not ((lines != 0) & (lines.abs() < tiny)).any()


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.1, 2.5])  # on and between the directions of the lines
def test_directed_noise_lies_along_the_flow_of_each_pixel(angle):
    lay = DirectedNoise()
    across = (angle + math.pi / 2) % math.pi
    flow = torch.cat([pointing(angle).expand(2, 120, 120), pointing(across).expand(2, 120, 120)], 2)[None]
    flow.requires_grad_(True)
    made = lay(torch.randn(1, 4, 140, 260, generator=source(0)), flow)
    for half, expected in ((made[..., :115], angle), (made[..., 125:], across)):
        found, coherence = direction(half.detach())
        assert abs(math.sin(found - expected)) < 0.1 and coherence > 0.6
    assert direction(lay(torch.randn(1, 4, 140, 140, generator=source(1)), torch.zeros(1, 2, 120, 120)))[1] < 0.1
    made.square().mean().backward()
    assert flow.grad.abs().min() > 0  # so directions are learned, at each pixel


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.1, 2.5])
def test_the_flow_begins_along_the_contours_of_the_input(angle):
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(20.0), indexing="ij")
    lr = 5 * (1 + torch.sin(0.5 * (y * math.cos(angle) - x * math.sin(angle)))).expand(1, 1, 16, 20)
    generator = make(scale=10)
    torch.nn.init.zeros_(generator.net.flow.weight)
    halo = generator.net.halo
    cos, sin = generator.encode(lr, torch.zeros(1, 2, 16, 20))[1][0, -2:, halo + 4 : -halo - 4, halo + 4 : -halo - 4]
    assert (cos.hypot(sin) > 1.5).all()  # of two widths of contours
    assert (torch.sin(torch.atan2(sin, cos) / 2 - angle).abs() < 0.15).all()
    level = generator.encode(torch.full((1, 1, 16, 20), 5.0), torch.zeros(1, 2, 16, 20))[1][0, -2:]
    assert (level == 0).all()


def test_features_choose_the_direction_of_streaks():
    """Another flow from the same features and noise is another member."""
    generator, lr = make(), as_batch(rain(3, 4))
    noise = generator.draw_noise(1, (3, 4))
    plain = generator(lr, noise)
    with torch.no_grad():
        generator.net.flow.bias.add_(5.0)
    assert not torch.allclose(generator(lr, noise), plain, rtol=1e-2)
    undirected = make(directed=False)
    assert not any(isinstance(layer, torch.nn.Conv2d) for layer in undirected.net.strength)
    torch.testing.assert_close(F.avg_pool2d(undirected(lr), 4), lr, rtol=1e-5, atol=1e-5)


def test_a_crop_is_a_part_of_the_whole():
    generator, lr = make(noise_channels=0), as_batch(rain(12, 9))
    part = generator(lr, crop=(2, 5, 4, 9))
    torch.testing.assert_close(part, generator(lr)[..., 8:20, 16:36], rtol=1e-4, atol=1e-5)


def test_position_channels_tie_a_generator_to_its_region():
    generator = make(position_channels=2, position_shape=(16, 20))
    torch.nn.init.normal_(generator.position)
    lr = rain(4, 5)
    np.testing.assert_allclose(whole_field(generator, lr), whole_field(generator, lr, tile=2), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="tied to a region"):
        generator(as_batch(rain(5, 5)))


FIELDS = tuple({"name": name, "units": "m", "mean": 0.0, "std": 1.0} for name in ("orog", "lsm"))


def ground(h, w, seed=3):
    return np.random.default_rng(seed).normal(size=(2, h, w)).astype(np.float32)


@pytest.mark.parametrize(("scale", "settings"), [(4, {}), (10, {"position_channels": 1, "position_shape": (90, 70)})])
def test_static_fields_enter_at_every_grid_and_tiles_equal_the_whole(scale, settings):
    generator, lr = make(scale, static_fields=FIELDS, **settings), rain(9, 7)
    maps = ground(9 * scale, 7 * scale)
    plain = whole_field(generator, lr, maps=maps)
    for tile in (1, 2, 4):
        np.testing.assert_allclose(whole_field(generator, lr, tile=tile, maps=maps), plain, rtol=1e-4, atol=1e-5)
    assert not np.allclose(whole_field(generator, lr, maps=0 * maps), plain, rtol=1e-2)
    rough = maps + (-1.0) ** np.indices(maps.shape).sum(0)  # the same block means: only the grid of HR sees it
    assert not np.allclose(whole_field(generator, lr, maps=rough), plain, rtol=1e-2)
    with pytest.raises(ValueError, match=r"static fields None, expected \(2, "):
        whole_field(generator, lr)
    with pytest.raises(ValueError, match="static fields .*, expected None"):
        whole_field(make(scale), lr, maps=maps)


def test_checkpoint_rebuilds_the_generator(tmp_path):
    generator = make()
    ema = {"updates": 0, "weights": generator.state_dict()}
    torch.save({"generator_config": asdict(generator.config), "ema": ema}, tmp_path / "c.pth")
    again = load_generator(torch.load(tmp_path / "c.pth", weights_only=True))
    assert np.array_equal(whole_field(again, rain(3, 3)), whole_field(generator, rain(3, 3)))
    with pytest.raises(ValueError, match="generator_config"):
        load_generator({"weights": 1})


# ---- transforms ----


@pytest.mark.parametrize("name", [n for n in TRANSFORMS if n != "binarise"])
def test_transforms_are_invertible(name):
    x = torch.from_numpy(rain(20, 20)).double()
    transform = TRANSFORMS[name]
    p = transform.fit(x.numpy())
    assert all(isinstance(v, float) for v in p.values())
    torch.testing.assert_close(transform.inverse(transform.forward(x, p), p), x)


def test_transforms_have_their_textbook_ranges():
    x = torch.tensor([0.0, 2.0, 40.0])
    y = {name: t.forward(x, t.fit(x.numpy())) for name, t in TRANSFORMS.items()}
    torch.testing.assert_close(y["minmax"], x / 40)
    torch.testing.assert_close(y["decimal"], x / 100)
    torch.testing.assert_close(y["mean"], (x - 14) / 40)
    torch.testing.assert_close(y["mean_over_max"], (x - 14) / 40)
    torch.testing.assert_close(y["log"], torch.log10(1 + 10 * x))
    assert y["binarise"].tolist() == [0, 1, 1]
    assert abs(y["zscore"].std(correction=0) - 1) < 1e-6


def test_binarise_returns_class_means():
    x = torch.tensor([0.0, 0.02, 2.0, 4.0])
    transform = TRANSFORMS["binarise"]
    p = transform.fit(x.numpy())
    back = transform.inverse(transform.forward(x, p), p)
    torch.testing.assert_close(back, torch.tensor([0.01, 0.01, 3.0, 3.0]))
    assert torch.equal(transform.forward(back, p), transform.forward(x, p))


@pytest.mark.parametrize("name", list(TRANSFORMS))
def test_every_transform_carries_a_generator(name):
    p = TRANSFORMS[name].fit(rain(5, 5))
    lr = as_batch(rain(3, 3))
    sr = make(transform=name, transform_parameters=p)(lr)
    torch.testing.assert_close(F.avg_pool2d(sr, 4), lr, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", list(TRANSFORMS))
def test_transforms_survive_dry_data(name):
    p = TRANSFORMS[name].fit(np.zeros(5))
    assert torch.isfinite(TRANSFORMS[name].forward(torch.zeros(3), p)).all()


# ---- losses ----


def test_fair_crps_is_unbiased_in_the_number_of_members():
    """Perfect members: E = E|X - Y| / 2 whatever M (Ferro 2014); for N(0, 1) that is 1 / sqrt(pi)."""
    rng = torch.Generator().manual_seed(0)
    y = torch.randn(1, 1, 400, 400, generator=rng)
    for m in (2, 3, 5):
        x = torch.randn(m, 1, 1, 400, 400, generator=rng)
        assert abs(fair_crps(x, y, pools=(1,)) - 1 / math.sqrt(math.pi)) < 5e-3


def test_fair_crps_by_hand():
    members = torch.tensor([1.0, 3.0, 6.0]).view(3, 1, 1, 1, 1)
    skill, spread = (1 + 1 + 4) / 3, (2 + 5 + 3) / 3
    assert fair_crps(members, torch.full((1, 1, 1, 1), 2.0)).item() == pytest.approx(skill - spread / 2)


def test_fair_crps_of_one_member_is_its_error_and_pools_are_means_of_blocks_half_over_one_another():
    x, y = torch.rand(1, 2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(fair_crps(x, y, (1,)), (x[0] - y).abs().mean())
    torch.testing.assert_close(fair_crps(x, y, (4,)), (F.avg_pool2d(x[0], 4, 2) - F.avg_pool2d(y, 4, 2)).abs().mean())


def test_content_losses_by_name():
    x, y = torch.rand(2, 1, 1, 8, 8), torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(content_loss("mse", x, y), ((x - y) ** 2).mean())
    torch.testing.assert_close(content_loss("l1", x, y), (x - y).abs().mean())
    torch.testing.assert_close(content_loss("crps", x, y), fair_crps(x, y))
    with pytest.raises(ValueError, match="crps, mse, l1, vgg"):
        content_loss("l2", x, y)
    with pytest.raises(ValueError, match="TruncatedVGG19"):
        content_loss("vgg", x, y)


@pytest.mark.parametrize("name", list(ADVERSARIAL_LOSSES))
def test_adversarial_losses_oppose_each_other(name):
    real, fake = torch.tensor([[3.0]]), torch.tensor([[-3.0]])
    won, lost = ADVERSARIAL_LOSSES[name](real, fake), ADVERSARIAL_LOSSES[name](fake, real)
    assert won[0] < lost[0]
    assert won[1] > lost[1]


def streaks(angles, seed, side=96):
    """Streaky rain (N, 1, side, side) along these angles."""
    noise = torch.randn(len(angles), 1, side + 20, side + 20, generator=source(seed))
    flow = torch.stack([pointing(angle) for angle in angles.tolist()])
    return DirectedNoise()(noise, flow.expand(-1, 2, side, side)).exp()


def test_structure_score_is_least_for_members_drawn_as_the_truth_is():
    """Each sample has a direction that is known to 0.3 rad; members that are smooth or lie otherwise score worse."""
    known = math.pi * torch.rand(24, generator=source(0))

    def drawn(seed):
        return streaks(known + 0.3 * torch.randn(24, generator=source(100 + seed)), seed)

    truth, fair, weight = drawn(1), torch.stack([drawn(2), drawn(3)]), torch.ones(24, 1, 1, 1)
    one_direction = torch.stack([streaks(torch.zeros(24), seed) for seed in (4, 5)])
    smooth = F.avg_pool2d(fair.flatten(0, 1), 3, 1, 1).unflatten(0, (2, 24))
    score = lambda members: torch.stack(structure_score(members, truth, weight))  # noqa: E731
    amplitude, turned = score(fair)
    assert score(smooth)[0] > 2 * amplitude
    assert score(one_direction)[1] > 2 * turned and score(fair.rot90(1, (-2, -1)))[1] > 2 * turned
    assert (score(fair[:1].expand(2, -1, -1, -1, -1)) > 1.5 * score(fair)).all()  # without spread


def test_structure_score_is_fair():
    """The score of an ensemble is the mean of the scores of its pairs (Ferro 2014), so members gain by no number."""
    truth, weight = streaks(torch.rand(3, generator=source(0)), 1, 48), torch.tensor([0.5, 1.0, 1.5]).view(3, 1, 1, 1)
    members = torch.stack([streaks(torch.rand(3, generator=source(seed)), seed, 48) for seed in range(2, 7)])
    pairs = [torch.stack(structure_score(members[list(pair)], truth, weight)) for pair in combinations(range(5), 2)]
    torch.testing.assert_close(torch.stack(structure_score(members, truth, weight)), torch.stack(pairs).mean(0))


def test_structure_score_of_the_truth_is_nothing_and_small_fields_have_none():
    truth, weight = torch.rand(2, 1, 48, 48), torch.ones(2, 1, 1, 1)
    assert max(structure_score(truth[None].expand(2, -1, -1, -1, -1), truth, weight)) < 2e-3
    assert structure_score(truth[None, ..., :2, :2], truth[..., :2, :2], weight) == [0, 0]


@pytest.mark.parametrize("kind", [Discriminator, SRGANDiscriminator])
def test_a_critic_sees_the_field_beside_its_lr(kind):
    critic = kind().eval()
    lr, hr = torch.rand(2, 1, 2, 2), torch.rand(2, 1, 48, 48)
    seen = critic.see(lr, hr)
    assert seen.shape == (2, 2, 48, 48)
    for other in (critic.see(lr + 5, hr), critic.see(lr, hr.flip(-1))):
        assert not torch.allclose(critic(other), critic(seen))
    assert torch.isfinite(critic(critic.see(0 * lr, 0 * hr))).all()


def test_critics_have_the_layouts_that_are_documented():
    """Patches: a map of logits, a network for each grid. SRGAN: eight convolutions, one logit a sample."""
    patches, published = Discriminator(), SRGANDiscriminator()
    assert patches(torch.rand(2, 2, 48, 80)).shape == (2, 1, 6, 10)
    assert not torch.equal(patches(torch.ones(1, 2, 48, 48)), patches(torch.ones(1, 2, 48, 48), coarse=True))
    convolutions = [m for m in published.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [c.stride[0] for c in convolutions] == [1, 2] * 4 and convolutions[-1].out_channels == 512
    assert published.eval()(torch.rand(2, 2, 48, 48)).shape == (2, 1)


def mean_penalty(critic, side, seed, draws):
    """Mean gradient penalty at rain of side x side pixels."""
    torch.manual_seed(seed)
    total = 0.0
    for _ in range(draws):
        hr = 8 * torch.rand(2, 1, side, side) * (torch.rand(2, 1, side, side) > 0.3)
        total += gradient_penalty(critic, critic.see(F.avg_pool2d(hr, 16), hr)).item()
    return total / draws


def test_the_gradient_penalty_does_not_depend_on_crop_and_number_of_patches():
    torch.manual_seed(0)
    critic = Discriminator()
    small, large = mean_penalty(critic, 64, 1, 10), mean_penalty(critic, 160, 2, 4)
    assert large / 1.5 < small < 1.5 * large  # 8 x 8 and 20 x 20 patches; borders of 0 are part of both

    class Even(Discriminator):  # patches half over the next, whose slopes are all alike
        _network = staticmethod(lambda channels: torch.nn.Conv2d(2, 1, 16, 8))

    even = Even()
    torch.nn.init.constant_(even.networks[0].weight, 0.1)
    for side in (32, 96):  # 3 x 3 and 11 x 11 patches: the square of one slope, without their overlap
        assert mean_penalty(even, side, 3, 40) == pytest.approx(16 * 16 * 0.1**2, rel=0.1)


def test_the_gradient_penalty_grows_with_the_slope_and_teaches():
    torch.manual_seed(0)
    critic = Discriminator()
    gentle = mean_penalty(critic, 48, 0, 1)
    with torch.no_grad():
        critic.networks[0][-1].weight.mul_(3.0)
    assert mean_penalty(critic, 48, 0, 1) == pytest.approx(9 * gentle, rel=1e-3)
    gradient_penalty(critic, torch.rand(1, 2, 48, 48)).backward()
    slopes = [p.grad for name, p in critic.networks[0].named_parameters() if name.endswith("weight")]
    assert all(torch.isfinite(slope).all() and slope.abs().sum() > 0 for slope in slopes)


# ---- helpers ----


def test_initialise_normal():
    generator = make(channels=32)
    initialise_normal(generator)
    assert abs(generator.net.ups[0].up.weight.std() - 0.02) < 2e-3
    assert generator.net.outs[0].bias.abs().max() == 0


def test_vgg_is_the_real_layout_frozen_and_verified(tmp_path):
    torch.manual_seed(0)
    with torch.device("meta"):
        layout = torchvision.models.vgg19(weights=None)
    state = {
        k: torch.randn(v.shape) * 0.05 if k.startswith("features") else torch.zeros(1).expand(v.shape)
        for k, v in layout.state_dict().items()
    }
    layout.load_state_dict(state, assign=True)
    path = tmp_path / "w.pth"
    torch.save(state, path)
    named = path.rename(tmp_path / f"vgg19-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth")
    vgg = TruncatedVGG19(5, 4, named)
    image = torch.rand(1, 1, 32, 32)
    three = (image.expand(-1, 3, -1, -1) - vgg.mean) / vgg.std
    torch.testing.assert_close(vgg(image), layout.features[:36](three))
    assert len(TruncatedVGG19(2, 2, named).features) == 9
    assert not any(p.requires_grad for p in vgg.parameters())
    assert not vgg.train().training
    x = torch.rand(2, 1, 1, 32, 32, requires_grad=True)
    content_loss("vgg", x, image, vgg=vgg).backward()
    assert x.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="no convolution 5"):
        TruncatedVGG19(1, 5, named)
    with pytest.raises(ValueError, match="SHA-256"):
        TruncatedVGG19(5, 4, named.rename(tmp_path / models.VGG_FILE))


def test_absent_vgg_weights_say_where_to_put_them(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(models, "VGG_FILE", "vgg19-00000000.pth")
    with pytest.raises(FileNotFoundError, match="--vgg-weights"):
        TruncatedVGG19(5, 4)


@pytest.mark.parametrize(("scale", "even"), [(20, True), (4, False)])
def test_doubling_stages_of_many_pixels_cannot_make_a_checkerboard(scale, even):
    """Whatever the filters have learned, equal features stay equal; sub-pixel filters only begin so."""
    torch.manual_seed(0)
    stage = make(scale).net.ups[-1]
    assert stage.factor == 2 and stage.resized == even
    torch.nn.init.normal_(stage.up.weight)
    with torch.no_grad():
        made = stage._upsampled(torch.ones(1, stage.up.in_channels, 8, 8))
    assert made.shape[-1] == 2 * 8 - 2 * (2 + stage.surplus)
    assert ((made - made[..., :1, :1]).abs().max() < 1e-4) == even


# ---- quick ways to the same numbers ----


def assert_same_with_gradients(quick, plain, *inputs):
    """Two functions of float64 tensors agree, and so do the gradients of their squares."""
    made, expected = quick(*inputs), plain(*inputs)
    torch.testing.assert_close(made, expected)
    slopes = [torch.autograd.grad(x.square().sum(), inputs) for x in (made, expected)]
    torch.testing.assert_close(*slopes)


def some(*shape, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.requires_grad_(True)


def test_repeated_pixels_need_no_repeated_field():
    def plain(x, weight, bias):
        return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias)

    def quick(x, weight, bias):
        return operations.shuffled(x, operations.repeating(weight), bias.expand(4, -1), 2)

    assert_same_with_gradients(quick, plain, some(2, 3, 6, 5), some(4, 3, 3, 3, seed=1), some(4, seed=2))


def test_sub_pixel_convolution_is_that_of_pixel_shuffle():
    def plain(x, weight, bias):
        return F.pixel_shuffle(F.conv2d(x, weight, bias), 3)

    def quick(x, weight, bias):
        return operations.shuffled(x, *(p.unflatten(0, (-1, 9)).transpose(0, 1) for p in (weight, bias)), 3)

    assert_same_with_gradients(quick, plain, some(2, 3, 6, 5), some(18, 3, 3, 3, seed=1), some(18, seed=2))


@pytest.mark.parametrize("padding", ["valid", "replicate"])
def test_a_residual_block_adds_its_input(padding):
    block = ResModel(3, padding=padding).double()
    n = 2 if padding == "valid" else 0
    assert_same_with_gradients(block, lambda x: x[..., n : 9 - n, n : 8 - n] + block.body(x), some(2, 3, 9, 8))


def test_trim_cuts_and_its_gradient_is_zero_outside():
    assert_same_with_gradients(lambda x: operations.trim(x, 2), lambda x: x[..., 2:-2, 2:-2].clone(), some(2, 3, 9, 8))


@pytest.mark.parametrize("side", [1, 2, 4, 7, 16, 20])
def test_window_means_are_those_of_pooling(side):
    def plain(x):
        return F.avg_pool2d(x, side, max(1, side // 2))

    assert_same_with_gradients(lambda x: operations.window_means(x, side), plain, some(2, 3, 20, 23))


def test_noise_in_use_is_scaled_but_not_in_training():
    torch.manual_seed(0)
    net = Generator(GeneratorConfig(scale=8, channels=8, blocks=1, noise_scale=(2.0, 0.5)))
    lr, box = 9 * torch.rand(1, 1, 4, 4), (1, 3, 0, 2)
    drawn = net.draw_noise(1, (4, 4), box, source(1))
    scaled = [noise * factor for noise, factor in zip(drawn, (2.0, 2.0, 0.5, 0.5), strict=True)]
    plain = Generator(GeneratorConfig(scale=8, channels=8, blocks=1))
    plain.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(net(lr, drawn, box), plain(lr, drawn, box))  # in training
        net.eval(), plain.eval()
        assert torch.equal(net(lr, drawn, box), plain(lr, scaled, box))
        assert not torch.allclose(net(lr, drawn, box), plain(lr, drawn, box))


def test_mixing_of_directions_has_the_gradient_of_its_formula():
    lay = DirectedNoise().double()
    drawn = torch.randn(2, 3, 6, 5, lay.DIRECTIONS, dtype=torch.float64, generator=source(1))

    def plain(flow):
        share = (flow @ lay.doubled.T).softmax(-1)
        share = share / torch.einsum("nhwd,de,nhwe->nhw", share, lay.alike, share).sqrt()[..., None]
        return (drawn * share[:, None]).sum(-1)

    def quick(flow):
        return operations.Mixed.apply(flow, drawn, lay.doubled, lay.alike)

    assert_same_with_gradients(quick, plain, some(2, 6, 5, 2))


@pytest.mark.parametrize("lag", [1, 2, 4])
def test_jumps_are_differences_from_neighbours(lag):
    def plain(x):
        middle = x[..., lag:-lag, lag:-lag]
        steps = ((0, lag), (lag, 0), (lag, lag), (-lag, lag))
        return torch.cat([(x.roll((-a, -b), (-2, -1))[..., lag:-lag, lag:-lag] - middle).abs() for a, b in steps], 1)

    assert_same_with_gradients(lambda x: operations.Jumps.apply(x, lag), plain, some(2, 1, 13, 17))
