import authors_layout
import pytest
import torch

from iso_d2.modeling import ISONet, official

NETS = [
    (18, False, False, "ISONet-18, imagenet stem, 10 classes"),
    (34, True, False, "R-ISONet-34, imagenet stem, 10 classes"),
    (50, True, False, "R-ISONet-50, imagenet stem, 10 classes"),
    (50, False, False, "ISONet-50, imagenet stem, 10 classes"),
    (20, True, True, "R-ISONet-20, cifar stem, 10 classes"),
    (18, True, True, "R-ISONet-18, cifar stem, 10 classes"),
]


def isonet(depth, residual, cifar):
    return ISONet(depth, residual, stem="cifar" if cifar else "imagenet", num_classes=10).eval()


@pytest.mark.parametrize("depth, residual, cifar, said", NETS)
def test_logits_and_the_way_back(depth, residual, cifar, said):
    torch.manual_seed(0)
    authors = authors_layout.random_net(depth, residual, cifar)
    state, variant = official.to_isonet(authors_layout.checkpoint(authors))
    assert str(variant) == said
    net = isonet(depth, residual, cifar)
    net.load_state_dict(state)  # strict: every name and shape
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = authors_layout.logits(authors, depth, images)
        torch.testing.assert_close(net(images)["linear"], expected, rtol=1e-4, atol=1e-4)
    assert expected[0].std() > 0.1 and (expected[0] - expected[1]).abs().max() > 1e-3

    back = official.to_authors({"model": net.state_dict()})
    assert back.keys() == authors.keys()
    assert all(torch.equal(back[name], authors[name]) for name in authors)


def test_prefixes():
    authors = authors_layout.random_net(20, True, cifar=True)
    expected, variant = official.to_isonet({"net": authors})
    sources = [
        authors,
        {f"module.{name}": tensor for name, tensor in authors.items()},
        {"model": expected},
        {"model": {f"backbone.{name}": tensor for name, tensor in expected.items()}, "iteration": 3},
    ]
    for source in sources:
        state, found = official.to_isonet(source)
        assert found == variant and state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_every_wrong_key_is_named():
    authors = authors_layout.random_net(20, True, cifar=True)
    del authors["s2.b3.relu.srelu_bias"]
    authors["s1.b1.f.a_bn.weight"] = torch.ones(16)
    authors["s3.b2.f.b.weight"] = torch.ones(64, 32, 3, 3)
    with pytest.raises(ValueError, match="does not fit R-ISONet-20, cifar stem, 10 classes") as raised:
        official.to_isonet({"net": authors})
    for words in (
        "s2.b3.relu.srelu_bias is missing",
        "s1.b1.f.a_bn.weight has no place",
        r"s3.b2.f.b.weight has shape (64, 32, 3, 3), not (64, 64, 3, 3)",
    ):
        assert words in str(raised.value)


def test_depth_that_there_is_not():
    authors = authors_layout.random_net(18, False)
    more = {name.replace("s4.b2.", "s4.b3."): t for name, t in authors.items() if name.startswith("s4.b2.")}
    with pytest.raises(ValueError, match=r"Stages of \[2, 2, 2, 3\] basic blocks with the imagenet stem"):
        official.to_isonet({"net": {**authors, **more}})
    # 6n+2 = 50 with n = 8, but 50 is a four-stage net here
    stages = {f"s{s}.b{b}.f.a.weight": torch.ones(1) for s in (1, 2, 3) for b in range(1, 9)}
    ends = {name: t for name, t in authors_layout.random_net(20, False, True).items() if name[0] != "s"}
    narrow = {**stages, **ends, "stem.conv.weight": torch.ones(16, 3, 3, 3)}
    with pytest.raises(ValueError, match=r"Stages of \[8, 8, 8\] basic blocks .* are of no known depth"):
        official.to_isonet({"net": narrow})


@pytest.mark.parametrize(
    "content, message",
    [
        ({"epoch": 3}, "Not a checkpoint of a net: expected"),
        ({"net": torch.ones(3)}, "Not a checkpoint of a net: expected"),
        (
            {"net": {"layer1.weight": torch.ones(3)}},
            r"lacks stem\.conv\.weight .* first keys: layer1\.weight",
        ),
        (
            {"model": {"backbone.fpn_lateral2.weight": torch.ones(1), "linear.bias": torch.ones(1)}},
            r"has no name for fpn_lateral2\.weight$",
        ),
    ],
)
def test_other_content(content, message):
    with pytest.raises(ValueError, match=message):
        official.to_isonet(content)


class Executed:
    def __reduce__(self):
        return (print, ("executed",))


def test_wrong_files(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match=r"absent\.pt' does not exist"):
        official.read_checkpoint(str(tmp_path / "absent.pt"))
    path = tmp_path / "a.pt"
    path.write_text("no checkpoint")
    with pytest.raises(ValueError, match=r"a\.pt' cannot be read: .* no checkpoint of PyTorch"):
        official.read_checkpoint(str(path))
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"a\.pt' holds a list, not"):
        official.read_checkpoint(str(path))
    torch.save({"net": {}, "more": Executed()}, path)
    with pytest.raises(ValueError, match="holds more than tensors"):
        official.read_checkpoint(str(path))
    assert "executed" not in capsys.readouterr().out


def test_gains_survive_and_go_into_the_authors_weights():
    net = ISONet(20, True, stem="cifar", num_classes=10, signal="scaled", scale_init=0.5, metric=True).eval()
    for name, parameter in net.named_parameters():
        if name.endswith("metric"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = net(images)["linear"]
        state, _ = official.to_isonet({"model": {f"backbone.{n}": t for n, t in net.state_dict().items()}})
        again = ISONet(20, True, stem="cifar", num_classes=10, metric=True).eval()
        again.load_state_dict(state)
        torch.testing.assert_close(again(images)["linear"], expected)
        authors = official.to_authors({"model": net.state_dict()})
        plain = ISONet(20, True, stem="cifar", num_classes=10).eval()
        plain.load_state_dict(official.to_isonet({"net": authors})[0])
        torch.testing.assert_close(plain(images)["linear"], expected, rtol=1e-4, atol=1e-4)
