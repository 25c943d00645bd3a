"""A corpus of hostile repositories: each is refused in one sentence or loaded harmlessly, and none runs anything."""

import base64
import io
import itertools
import json
import pickle
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
import yaml
from huggingface_hub import HfApi, constants
from rl_zoo3.utils import create_test_env, get_saved_hyperparams
from safetensors.torch import load, save
from stable_baselines3 import DQN

from dqn_ext import DDQN
from dqn_ext.errors import InvalidInput
from dqn_ext.hub import load as hub_load
from dqn_ext.hub.agent_file import CHECKSUMS, DESCRIPTION, Agent, describe_space
from dqn_ext.hub.zoo_file import _spaces_of_environment
from tests.hub.hub_server import HubServer

Files = dict[str, bytes]
ENV = "CartPole-v1"
MARKER = Path("/tmp/dqn_ext_test_marker_not_to_be_made")  # replaced for each test run by the fixture


class Payload:
    """Makes the marker when it is unpickled."""

    def __reduce__(self) -> Any:
        return (open, (str(MARKER), "w"))


@pytest.fixture(autouse=True)
def marker(tmp_path, monkeypatch):
    path = tmp_path / "marker"
    monkeypatch.setitem(globals(), "MARKER", path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return path


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def pushed(tmp_path_factory) -> Files:
    """A repository as this package pushes it, with the Zoo's files beside the description."""
    folder = tmp_path_factory.mktemp("pushed")
    model = DDQN("MlpPolicy", ENV, policy_kwargs={"net_arch": [16]}, buffer_size=1000, device="cpu", seed=1)
    model.learn(150)
    hyperparams = {"policy": "MlpPolicy", "policy_kwargs": {"net_arch": [16]}, "normalize": False, "batch_size": 32}
    Agent.of(model, "ddqn", ENV, hyperparams, {}).write(folder)
    description = json.loads((folder / DESCRIPTION).read_text())
    del description[CHECKSUMS]  # the wicked can change them, too
    (folder / DESCRIPTION).write_text(json.dumps(description))
    model.save(folder / f"ddqn-{ENV}.zip")
    ordered = "!!python/object/apply:collections.OrderedDict\n"
    hyperparams["policy_kwargs"] = "dict(net_arch=[16])"
    for name, content in (("config.yml", hyperparams), ("args.yml", {"env": ENV, "env_kwargs": None})):
        (folder / name).write_text(ordered + yaml.safe_dump([[[k, v] for k, v in content.items()]]))
    (folder / "env_kwargs.yml").write_text("{}\n")
    evaluations = io.BytesIO()
    np.savez(evaluations, timesteps=np.array([100]), results=np.array([[9.0, 10.0]]))
    monitor = b'#{"t_start": 1.5, "env_id": "CartPole-v1"}\nr,l,t\n9.0,9,0.1\n10.0,10,0.2\n'
    members = {"evaluations.npz": evaluations.getvalue(), "0.monitor.csv": monitor}
    (folder / "train_eval_metrics.zip").write_bytes(zipped(members))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return content.getvalue()


def unzipped(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def in_weights(files: Files) -> dict[str, bytes]:
    """The members of the zip that policy.pth is."""
    return unzipped(unzipped(files[f"ddqn-{ENV}.zip"])["policy.pth"])


def torch_saved(thing: Any) -> bytes:
    content = io.BytesIO()
    th.save(thing, content)
    return content.getvalue()


def download(hub: HubServer, files: Files, folder: Path, algo: str = "ddqn") -> None:
    hub.repos["mallory/agent"] = dict(files)
    folder.mkdir(exist_ok=True)
    hub_load.download("mallory/agent", algo, ENV, folder, HfApi(endpoint=hub.url, token=False))


def play(folder: Path) -> None:
    """Unpickle, import and evaluate all that the Zoo's commands do, from the files that loading has written."""
    run = folder / "run"
    (run / ENV).mkdir(parents=True)
    for name in ("config.yml", "args.yml", "env_kwargs.yml"):
        (folder / name).rename(run / ENV / name)
    if (folder / "vec_normalize.pkl").exists():
        (folder / "vec_normalize.pkl").rename(run / ENV / "vecnormalize.pkl")
    with zipfile.ZipFile(folder / "train_eval_metrics.zip") as archive:
        assert set(names := archive.namelist()) <= {"evaluations.npz", "0.monitor.csv", "monitor.csv"}
        assert len(names) == len(set(names))
        archive.extractall(run)
    assert not (run / "replay_buffer.pkl").exists()
    hyperparams, stats_path = get_saved_hyperparams(str(run / ENV), test_mode=True)
    yaml.load((run / ENV / "args.yml").read_text(), Loader=yaml.UnsafeLoader)
    env = create_test_env(ENV, stats_path=stats_path, should_render=False, hyperparams=hyperparams)
    model = DDQN.load(folder / f"ddqn-{ENV}.zip", env=env, device="cpu")
    assert model.predict(env.reset(), deterministic=True)[0].shape == (1,)
    env.close()


# ---------------------------------------------------------------------- the corpus

Case = Callable[[Files], None]
DESCRIBED: dict[str, tuple[Case, str]] = {}  # name -> what it does to a described repository, and what is said of it
PLAIN: dict[str, tuple[Case, str]] = {}  # the same of a repository of the plain Zoo's


def described(says: str) -> Callable[[Case], Case]:
    return lambda case: DESCRIBED.setdefault(case.__name__, (case, says))[0]


def plain(says: str) -> Callable[[Case], Case]:
    return lambda case: PLAIN.setdefault(case.__name__, (case, says))[0]


HARMLESS = ""


def edit_description(**changes: Any) -> Case:
    def edit(files: Files) -> None:
        description = json.loads(files["agent.json"])
        for name, value in changes.items():
            *path, last = name.split("__")
            place = description
            for part in path:
                place = place.setdefault(part, {})
            place[last] = value
        files["agent.json"] = json.dumps(description).replace("MARKER", str(MARKER)).encode()

    return edit


CODE = "__import__('pathlib').Path('MARKER').touch()"

EDITS = {
    "unknown field": ({"callback": "os.system"}, "must not set 'callback'"),
    "unknown format": ({"format": 2}, "format must be one of 1"),
    "algorithm by path": ({"algorithm": "../../evil"}, "algorithm must be one of"),
    "environment by module": ({"env_id": "evil:CartPole-v1"}, "env_id must match"),
    "environment as path": ({"env_id": "../../CartPole-v1"}, "env_id must match"),
    "another environment": ({"env_id": "Acrobot-v1"}, "mallory/agent holds ddqn for Acrobot-v1"),
    "another algorithm": ({"algorithm": "dqn"}, "mallory/agent holds dqn for"),
    "normalize as code": ({"hyperparameters__normalize": CODE}, "normalize must be a mapping"),
    "normalize without numbers": ({"hyperparameters__normalize": True}, "must have a normalization"),
    "wrapper by name": ({"hyperparameters__env_wrapper": "os.system"}, "env_wrapper must be one of"),
    "wrapper with arguments": ({"hyperparameters__env_wrapper": [{"os.system": {"x": 1}}]}, "env_wrapper"),
    "vector wrapper by name": ({"hyperparameters__vec_env_wrapper": "os.system"}, "vec_env_wrapper must be one of"),
    "callback by name": ({"hyperparameters__callback": ["os.system"]}, "must not set 'callback'"),
    "policy by name": ({"hyperparameters__policy": "os.system"}, "policy must be one of"),
    "policy_kwargs as code": ({"hyperparameters__policy_kwargs": CODE}, "policy_kwargs must be a mapping"),
    "extractor by name": (
        {"hyperparameters__policy_kwargs__features_extractor_class": "os.system"},
        "features_extractor_class must be one of",
    ),
    "replay memory in a folder": (
        {"hyperparameters__replay_buffer_kwargs": {"store": "memmap", "store_dir": "/tmp"}},
        "must not set 'replay_buffer_kwargs'",
    ),
    "learning rate as code": ({"hyperparameters__learning_rate": CODE}, "learning_rate must be a finite number"),
    "truth value for a number": ({"num_timesteps": True}, "num_timesteps must be a whole number"),
    "text for a number": ({"exploration_rate": "0.1"}, "exploration_rate must be a finite number"),
    "number out of range": ({"exploration_rate": 1.5}, "exploration_rate must be a finite number from 0 to 1"),
    "huge network": ({"hyperparameters__policy_kwargs__net_arch": [16384] * 16}, "The weights lack"),
    "network beyond all bounds": (
        {"hyperparameters__policy_kwargs__net_arch": [10**12]},
        "net_arch[0] must be a whole",
    ),
    "huge observations": ({"observation_space__shape": [65536] * 4}, "must hold at most"),
    "negative observations": ({"observation_space__shape": [-4]}, "shape[0] must be a whole number"),
    "observations of objects": ({"observation_space__dtype": "object"}, "dtype must be one of"),
    "bounds that do not fit": ({"observation_space__low": [0.0] * 5}, "low must be one number or 4"),
    "huge action space": ({"action_space__n": 10**9}, "action_space.n must be a whole number"),
    "optimizer that cannot be": (
        {"hyperparameters__policy_kwargs__optimizer_kwargs": {"betas": [1.0, 1.0]}},
        "an agent that cannot be built",
    ),
    "normalization that does not fit": (
        {
            "hyperparameters__normalize": True,
            "normalization": {key: {"mean": [0.0] * 9, "var": [1.0] * 9, "count": 1} for key in ("obs", "ret")},
        },
        "normalization must have 4 numbers, not 9",
    ),
    "normalization that nobody asked for": (
        {"normalization": {key: {"mean": 0.0, "var": 1.0, "count": 1} for key in ("obs", "ret")}},
        "must have a normalization where",
    ),
    "a step without end": (
        {"env_kwargs": {"frameskip": 10**9}},
        "frameskip must be a whole number from 1 to 100",
    ),
    "stacks without end": ({"hyperparameters__frame_stack": 1024}, "frame_stack must be a whole number from 1 to 64"),
    "file of the environment's": ({"env_kwargs": {"xml_file": "/etc/passwd"}}, "env_kwargs.xml_file must be"),
    "dunder in env_kwargs": ({"env_kwargs": {"__class__": 1}}, "env_kwargs's name must match"),
    "version as markup": ({"versions": {"dqn-ext": "<script>"}}, "versions.dqn-ext must match"),
}
for _name, (_changes, _says) in EDITS.items():
    DESCRIBED[_name] = (edit_description(**_changes), _says)


@described("is not readable JSON")
def description_with_nan(files):
    files["agent.json"] = files["agent.json"].replace(b'"exploration_rate": ', b'"exploration_rate": NaN, "x": ')


@described("is not readable JSON")
def description_nested_without_end(files):
    files["agent.json"] = b"[" * 200_000


@described("of mallory/agent must not be larger than")
def description_too_long(files):
    files["agent.json"] += b" " * 2**21


@described("must be a mapping")
def description_a_list(files):
    files["agent.json"] = b"[1, 2]"


@described("is not readable JSON")
def description_pickled(files):
    files["agent.json"] = pickle.dumps(Payload())


def edit_weights(change: Callable[[dict[str, th.Tensor]], None]) -> Case:
    def edit(files: Files) -> None:
        weights = load(files["agent.safetensors"])
        change(weights)
        files["agent.safetensors"] = save(weights)

    return edit


FIRST = "q_net.0.weight"
DESCRIBED |= {
    "NaN weights": (edit_weights(lambda w: w[FIRST].fill_(th.nan)), "must be finite numbers"),
    "infinite weights": (edit_weights(lambda w: w[FIRST][0, 0].fill_(th.inf)), "must be finite numbers"),
    "wrong shape": (edit_weights(lambda w: w.update({FIRST: w[FIRST].T.contiguous()})), "float32 of shape [16, 4]"),
    "wrong type": (edit_weights(lambda w: w.update({FIRST: w[FIRST].double()})), "float32 of shape [16, 4]"),
    "missing weights": (edit_weights(lambda w: w.pop(FIRST)), "The weights lack 'q_net.0.weight'"),
    "more weights": (edit_weights(lambda w: w.update({"../../x": th.ones(1)})), "must not have '../../x'"),
    "no weights": (edit_weights(lambda w: w.clear()), "The weights lack"),
}


@described("not a readable safetensors file")
def header_longer_than_the_file(files):
    files["agent.safetensors"] = struct.pack("<Q", 2**62) + files["agent.safetensors"][8:]


@described("not a readable safetensors file")
def header_declares_a_terabyte(files):
    header = json.dumps({FIRST: {"dtype": "F32", "shape": [2**19, 2**19], "data_offsets": [0, 2**40]}}).encode()
    files["agent.safetensors"] = struct.pack("<Q", len(header)) + header + bytes(100)


@described("not a readable safetensors file")
def header_with_overlapping_weights(files):
    content = files["agent.safetensors"]
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    first = header[FIRST]["data_offsets"]
    header["q_net.2.weight"]["data_offsets"] = [first[0], first[0] + 2 * 16 * 4]
    text = json.dumps(header).encode()
    files["agent.safetensors"] = struct.pack("<Q", len(text)) + text + content[8 + size :]


@described("not a readable safetensors file")
def weights_pickled(files):
    files["agent.safetensors"] = torch_saved({FIRST: Payload()})


@described("not a readable safetensors file")
def weights_cut_off(files):
    files["agent.safetensors"] = files["agent.safetensors"][:-10]


@described(HARMLESS)
def hostile_files_of_the_zoos_beside_ours(files):
    """None of them is read where our own two are there."""
    hostile_data(files)
    config_makes_an_object(files)
    files["vec_normalize.pkl"] = files["replay_buffer.pkl"] = pickle.dumps(Payload())


def edit_model(**members: bytes | None) -> Case:
    def edit(files: Files) -> None:
        zip_members = unzipped(files[f"ddqn-{ENV}.zip"])
        for name, content in members.items():
            name = name.replace("__", ".")
            if content is None:
                del zip_members[name]
            else:
                zip_members[name] = content
        files[f"ddqn-{ENV}.zip"] = zipped(zip_members)

    return edit


def edit_policy(files: Files, members: dict[str, bytes]) -> None:
    """Exchange or add members of the zip that policy.pth is."""
    edit_model(policy__pth=zipped({**in_weights(files), **members}))(files)


@plain(HARMLESS)
def hostile_data(files):
    data = json.loads(unzipped(files[f"ddqn-{ENV}.zip"])["data"])
    bomb = {":type:": "<class 'int'>", ":serialized:": base64.b64encode(pickle.dumps(Payload())).decode()}
    for key in list(data):
        if isinstance(data[key], dict) and ":serialized:" in data[key]:
            data[key] = bomb
    data["anything_else"] = bomb
    edit_model(data=json.dumps(data).encode())(files)


@plain("num_timesteps must be a whole number")
def hostile_number_in_data(files):
    data = json.loads(unzipped(files[f"ddqn-{ENV}.zip"])["data"])
    data["num_timesteps"] = {":serialized:": base64.b64encode(pickle.dumps(Payload())).decode()}
    edit_model(data=json.dumps(data).encode())(files)


@plain("policy.pth holds more than weights")
def weights_with_an_object(files):
    edit_model(policy__pth=torch_saved({FIRST: Payload()}))(files)


@plain("policy.pth is not a zip file")
def weights_in_the_old_pickle_format(files):
    edit_model(policy__pth=pickle.dumps(Payload()))(files)


@plain("policy.pth must not be compressed")
def weights_as_a_bomb(files):
    members = in_weights(files)
    members["archive/data/0"] = bytes(2**28)
    edit_model(policy__pth=zipped(members, zipfile.ZIP_DEFLATED))(files)


@plain("policy.pth holds more than weights: '__builtin__ bytearray'")
def weights_that_are_a_few_bytes_and_ask_for_a_gigabyte(files):
    edit_policy(
        files, {"archive/data.pkl": b"\x80\x02c__builtin__\nbytearray\nJ" + struct.pack("<i", 2**30) + b"\x85R."}
    )


@plain("policy.pth holds more than weights: '__builtin__ bytearray'")
def weights_in_a_pickle_in_capitals(files):
    """In which PyTorch finds it, too."""
    members = in_weights(files)
    del members["archive/data.pkl"]
    members["archive/DATA.PKL"] = b"\x80\x02c__builtin__\nbytearray\nJ" + struct.pack("<i", 2**28) + b"\x85R."
    edit_model(policy__pth=zipped(members))(files)


@plain("or is damaged ('something in it stands at several places')")
def weights_whose_hash_takes_for_ever(files):
    """A tuple of twice a tuple of twice a tuple ..., as the key of a dict."""
    edit_policy(files, {"archive/data.pkl": b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"Ns."})


@plain("or is damaged ('something in it stands at several places')")
def weights_whose_name_gives_its_place_to_a_tuple(files):
    """A name may stand at several places; what is kept under its number afterwards may not."""
    tuples = b"X\x01\x00\x00\x00aq\x000)" + b"q\x00h\x00\x86" * 60
    edit_policy(files, {"archive/data.pkl": b"\x80\x02}" + tuples + b"Ns."})


@plain("or is damaged ('a name in it is not one of weights')")
def weights_whose_name_is_a_thousand_times_a_long_one(files):
    long = b"X" + struct.pack("<I", 2**15) + b"x" * 2**15 + b"q\x00"
    edit_policy(files, {"archive/data.pkl": b"\x80\x02}(" + long + b"h\x00" * 1000 + b"tNs."})


@plain("or is damaged ('a name in it is not one of weights')")
def one_tensor_by_a_thousand_names(files):
    """PyTorch finds a file of the zip by any of them, and reads it once for each."""
    storages = b""
    for name in ("aaa", "aAa", "AAA"):
        words = [b"X" + struct.pack("<I", len(word)) + word for word in (b"storage", name.encode(), b"cpu")]
        number = b"J" + struct.pack("<i", 2**20)
        storages += b"(" + words[0] + b"ctorch\nFloatStorage\n" + words[1] + words[2] + number + b"tQ"
    edit_policy(files, {"archive/data/aaa": bytes(4 * 2**20), "archive/data.pkl": b"\x80\x02" + storages + b"."})


@plain("or is damaged ('it has more than 4000 tuples')")
def weights_that_are_a_tuple_in_a_tuple_in_a_tuple(files):
    """As the key of a dict: its hash would take all of the stack, and Python with it."""
    edit_policy(files, {"archive/data.pkl": b"\x80\x02})" + b"\x85" * 60_000 + b"Ns."})


@plain("policy.pth holds more than weights, or is damaged")
def weights_that_write_on_the_terminal(files):
    """PyTorch's message has the byte order as it stands there."""
    edit_policy(files, {"archive/byteorder": b"\x1b]52;c;eA==\x07"})


@plain("policy.pth must not have a member 'archive/\\x1b[2J\\nAll is well'")
def a_member_that_writes_on_the_terminal(files):
    edit_policy(files, {"archive/\x1b[2J\nAll is well": b""})


@plain("policy.pth must not have a member ''")
def a_member_without_a_name(files):
    content = zipped({**in_weights(files), "archive/x": b""}).replace(b"archive/x", bytes(9))
    edit_model(policy__pth=content)(files)


@plain("The pickle in policy.pth must not be larger than 64 KB")
def weights_in_a_long_pickle(files):
    edit_policy(files, {"archive/data.pkl": b"\x80\x02" + b"]" * 2**20 + b"."})


@plain("policy.pth holds more than weights, or is damaged")
def weights_in_a_pickle_that_is_cut_off(files):
    edit_policy(files, {"archive/data.pkl": in_weights(files)["archive/data.pkl"][:-20]})


@plain("policy.pth holds more than weights, or is damaged")
def weights_that_claim_to_be_larger_than_they_are(files):
    edit_policy(files, {"archive/data/0": in_weights(files)["archive/data/0"][:4]})


@plain("policy.pth is not a zip file (it has too many members)")
def weights_in_a_zip_of_many_members(files):
    edit_policy(files, {f"archive/{i}": b"" for i in range(20_000)})


@plain("the model must not be compressed")
def model_as_a_bomb(files):
    members = unzipped(files[f"ddqn-{ENV}.zip"])
    members["policy.pth"] += bytes(2**26)
    files[f"ddqn-{ENV}.zip"] = zipped(members, zipfile.ZIP_DEFLATED)


@plain("data must not be larger than")
def data_that_is_too_large(files):
    members = unzipped(files[f"ddqn-{ENV}.zip"])
    members["data"] = b"[" + bytes(2**23)
    files[f"ddqn-{ENV}.zip"] = zipped(members)


def edit_weights_of_the_zoos(change: Callable[[dict[str, Any]], None]) -> Case:
    def edit(files: Files) -> None:
        weights = th.load(io.BytesIO(unzipped(files[f"ddqn-{ENV}.zip"])["policy.pth"]), weights_only=True)
        change(weights)
        edit_model(policy__pth=torch_saved(weights))(files)

    return edit


@plain("must be float32 of shape")
def a_view_of_four_bytes_as_a_terabyte(files):
    edit_weights_of_the_zoos(lambda weights: weights.update({f"q_net.{FIRST}": th.zeros(1).expand(2**40)}))(files)


@plain("The weights must not be larger than the file that holds them")
def views_of_four_bytes_of_a_huge_network(files):
    """Which config.yml describes: tens of gigabytes."""
    files["config.yml"] = yaml.safe_dump({"policy": "MlpPolicy", "policy_kwargs": {"net_arch": [2**14] * 16}}).encode()
    sizes = [4, *[2**14] * 16, 2]
    weights = {}
    for layer, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        weights[f"q_net.q_net.{2 * layer}.weight"] = th.zeros(1).expand(n_out, n_in)
        weights[f"q_net.q_net.{2 * layer}.bias"] = th.zeros(1).expand(n_out)
    edit_model(policy__pth=torch_saved(weights))(files)


@plain("policy.pth holds more than weights: 'torch._utils _rebuild_meta_tensor_no_storage'")
def weights_on_no_device(files):
    nothing = th.empty(16, 4, device="meta")
    edit_weights_of_the_zoos(lambda weights: weights.update({f"q_net.{FIRST}": nothing}))(files)


@plain(HARMLESS)
def two_directories_in_one_zip(files):
    """Python reads the one before the end record, PyTorch the one that the end record points to, of NaN here."""
    members = in_weights(files)
    good = zipped(members)
    end = good.rindex(b"PK\5\6")
    (offset,) = struct.unpack_from("<I", good, end + 16)  # of the directory: the other one's is made the same
    members["archive/data/0"] = np.full(len(members["archive/data/0"]) // 4, np.nan, np.float32).tobytes()
    room = offset - struct.unpack_from("<I", zipped(members, zipfile.ZIP_DEFLATED)[-6:])[0]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
        archive.writestr(zipfile.ZipInfo("padding"), bytes(room - 30 - len("padding")))
    bad = content.getvalue()
    edit_model(policy__pth=bad[: bad.rindex(b"PK\5\6")] + good)(files)


@plain("must be float32 of shape")
def wrong_shapes_of_the_zoos(files):
    names = [f"q_net.q_net.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]
    edit_model(policy__pth=torch_saved({name: th.zeros(1) for name in names}))(files)


@plain("must be finite numbers")
def nan_weights_of_the_zoos(files):
    weights = th.load(io.BytesIO(unzipped(files[f"ddqn-{ENV}.zip"])["policy.pth"]), weights_only=True)
    weights[f"q_net.{FIRST}"].fill_(th.nan)
    edit_model(policy__pth=torch_saved(weights))(files)


@plain("the model is not a zip file")
def model_pickled(files):
    files[f"ddqn-{ENV}.zip"] = pickle.dumps(Payload())


@plain("config.yml is not YAML of plain values")
def config_makes_an_object(files):
    files["config.yml"] = f"!!python/object/apply:builtins.open ['{MARKER}', 'w']".encode()


@plain("config.yml is not YAML of plain values")
def config_with_an_object_inside(files):
    files["config.yml"] += f"  - - gamma\n    - !!python/object/apply:builtins.open ['{MARKER}', 'w']\n".encode()


@plain("config.yml is not YAML of plain values")
def config_with_strange_scalars(files):
    files["config.yml"] = b"gamma: !!int ''\n"


@plain("config.yml is not YAML of plain values ('a number in it is too long')")
def config_with_a_number_of_many_digits(files):
    files["config.yml"] += f"  - - gamma\n    - 0x{'f' * 5000}\n".encode()


@plain("config.yml is not YAML of plain values ('a number in it is too long')")
def config_with_a_number_that_takes_for_ever(files):
    """To the base 60; of 100,000 digits each takes as long as all before it."""
    files["config.yml"] += f"  - - gamma\n    - {'1:' * 100_000}1\n".encode()


@plain("args.yml is not YAML of plain values")
def args_import_a_module(files):
    files["args.yml"] = b"env: !!python/name:os.system ''"


@plain("config.yml is not YAML of plain values")
def config_of_a_billion_laughs(files):
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    files["config.yml"] = "\n".join(lines).encode()


@plain("policy_kwargs is not a literal")
def policy_kwargs_as_code(files):
    files["config.yml"] = yaml.safe_dump(
        {"policy": "MlpPolicy", "policy_kwargs": CODE.replace("MARKER", str(MARKER))}
    ).encode()


@plain("normalize is not a literal")
def normalize_as_code(files):
    files["config.yml"] = yaml.safe_dump(
        {"policy": "MlpPolicy", "normalize": CODE.replace("MARKER", str(MARKER))}
    ).encode()


@plain("running averages of its observations are pickled")
def normalize_by_pickle(files):
    files["config.yml"] = b"policy: MlpPolicy\nnormalize: true\n"
    files["vec_normalize.pkl"] = pickle.dumps(Payload())


@plain("env_wrapper must be one of")
def wrapper_by_name(files):
    files["config.yml"] = b"policy: MlpPolicy\nenv_wrapper: antigravity.evil\n"


@plain(HARMLESS)
def callback_by_name(files):
    """The run folder does without it: it is for training."""
    files["config.yml"] = b"policy: MlpPolicy\npolicy_kwargs: {net_arch: [16]}\ncallback: antigravity.evil\n"


@plain("config.yml must not set")
def unknown_setting(files):
    files["config.yml"] = b"policy: MlpPolicy\nfeatures_from: antigravity.evil\n"


@plain("vec_env_wrapper must be one of")
def vector_wrapper_by_name(files):
    files["config.yml"] = b"policy: MlpPolicy\nvec_env_wrapper: antigravity.evil\n"


@plain("args.yml's env must match")
def environment_by_module(files):
    files["args.yml"] = b"env: antigravity:CartPole-v1\nenv_kwargs: null\n"


@plain("cannot be made here")
def environment_that_fails(files):
    files["args.yml"] = b"env: CartPole-v1\nenv_kwargs: {no_such_argument: 1}\n"


@plain("of mallory/agent must not be larger than")
def config_too_long(files):
    files["config.yml"] += b"#" * 2**19


def edit_metrics(**members: bytes) -> Case:
    def edit(files: Files) -> None:
        renamed = {name.replace("__", "."): content for name, content in members.items()}
        files["train_eval_metrics.zip"] = zipped(unzipped(files["train_eval_metrics.zip"]) | renamed)

    return edit


@described(HARMLESS)
def metrics_replace_the_model_and_plant_a_replay_memory(files):
    evil = pickle.dumps(Payload())
    members = {f"{ENV}.zip": evil, "best_model.zip": evil, "replay_buffer.pkl": evil, f"{ENV}/vecnormalize.pkl": evil}
    files["train_eval_metrics.zip"] = zipped(members)


@described(HARMLESS)
def metrics_slip_out_of_the_folder(files):
    evil = {"../../marker": b"x", str(MARKER): b"x", "..\\..\\marker": b"x", "../0.monitor.csv": b"x"}
    files["train_eval_metrics.zip"] = zipped(unzipped(files["train_eval_metrics.zip"]) | evil)


@described(HARMLESS)
def metrics_with_a_link(files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        link = zipfile.ZipInfo("0.monitor.csv")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    files["train_eval_metrics.zip"] = content.getvalue()


@described(HARMLESS)
def metrics_as_a_bomb(files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("monitor.csv", "w") as member:
        for _ in range(80):
            member.write(bytes(2**20))
    files["train_eval_metrics.zip"] = content.getvalue()


@described(HARMLESS)
def one_member_of_metrics_many_times(files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(300):
            archive.writestr("0.monitor.csv", b"#{}\nr,l,t\n" + b"1.0,1,1.0\n" * 10_000)
    files["train_eval_metrics.zip"] = content.getvalue()


@described(HARMLESS)
def metrics_with_a_field_without_end(files):
    edit_metrics(**{"0__monitor__csv": b"#{}\nr,l,t\n" + b"1" * 200_000 + b",1,1\n"})(files)


for _header in (b"((((", b"{'descr': (), 'fortran_order': False, 'shape': ()}", b"-" * 20_000 + b"1"):
    _array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(_header)) + _header
    DESCRIBED[f"evaluations with the header {_header[:5]!r}"] = (
        edit_metrics(evaluations__npz=zipped({"timesteps.npy": _array})),
        HARMLESS,
    )


@described(HARMLESS)
def evaluations_pickled(files):
    evaluations = io.BytesIO()
    np.savez(evaluations, timesteps=np.array([Payload()], dtype=object))
    edit_metrics(evaluations__npz=evaluations.getvalue())(files)


@described(HARMLESS)
def evaluations_declare_a_terabyte(files):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**37,)})
    edit_metrics(evaluations__npz=zipped({"timesteps.npy": header.getvalue()}))(files)


@described(HARMLESS)
def metrics_damaged(files):
    content = bytearray(files["train_eval_metrics.zip"])
    content[40:60] = zlib.compress(b"x" * 100)[:20]
    files["train_eval_metrics.zip"] = bytes(content)


@described(HARMLESS)
def card_makes_an_object(files):
    files["README.md"] = f"---\na: !!python/object/apply:builtins.open ['{MARKER}', 'w']\n---\n".encode()


# ---------------------------------------------------------------------- the tests


def test_the_payload_works(hub, pushed, tmp_path):
    """What the corpus holds does run where it is loaded as ever."""
    files = dict(pushed)
    hostile_data(files)
    (tmp_path / "model.zip").write_bytes(files[f"ddqn-{ENV}.zip"])
    with pytest.raises(Exception):  # noqa: B017, PT011 a file is no environment
        DQN.load(tmp_path / "model.zip")
    assert MARKER.exists()


def test_the_unchanged_repositories_load(hub, pushed, tmp_path):
    zoo_files = {name: content for name, content in pushed.items() if not name.startswith("agent.")}
    for number, files in enumerate((pushed, zoo_files)):
        folder = tmp_path / str(number)
        download(hub, files, folder)
        original = th.load(io.BytesIO(unzipped(pushed[f"ddqn-{ENV}.zip"])["policy.pth"]), weights_only=True)
        loaded = th.load(io.BytesIO(unzipped((folder / f"ddqn-{ENV}.zip").read_bytes())["policy.pth"]))
        assert all((loaded[name] == original[name]).all() for name in original if name.startswith("q_net."))
        assert unzipped((folder / "train_eval_metrics.zip").read_bytes())["0.monitor.csv"].endswith(b"10.0,10,0.2\n")
        play(folder)


@pytest.mark.parametrize("name", DESCRIBED)
def test_described(hub, pushed, tmp_path, name):
    check(hub, pushed, tmp_path, *DESCRIBED[name])


@pytest.mark.parametrize("name", PLAIN)
def test_plain(hub, pushed, tmp_path, name):
    files = {name: content for name, content in pushed.items() if not name.startswith("agent.")}
    check(hub, files, tmp_path, *PLAIN[name])


def check(hub: HubServer, files: Files, tmp_path: Path, case: Case, says: str) -> None:
    files = dict(files)
    case(files)
    folder = tmp_path / "folder"
    if says:
        with pytest.raises(InvalidInput) as error:
            download(hub, files, folder)
        assert says in str(error.value)
        assert str(error.value).isprintable()  # one line, and nothing that a terminal obeys
        # Code would not help where a file is too large, or of another agent
        advised = f"{hub_load.LET_IT_RUN_CODE}=mallory/agent loads it as the Zoo does" in str(error.value)
        assert advised != ("of mallory/agent must not be larger" in says or "mallory/agent holds" in says)
        assert not any(folder.iterdir())
    else:
        download(hub, files, folder)
        play(folder)
    assert not MARKER.exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"folder", "cache"}


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (metrics_as_a_bomb, "The zip's monitor.csv must not be larger than 64 MB."),
        (evaluations_declare_a_terabyte, "evaluations.npz must hold numbers"),
    ],
)
def test_records_without_end(hub, pushed, tmp_path, capsys, case, says):
    check(hub, pushed, tmp_path, case, HARMLESS)
    assert says in capsys.readouterr().out


def test_whose_code_may_run(monkeypatch, tmp_path):
    """That of one repository, and of no other."""

    def download(repo_id, algo, env_name, folder, api):
        (folder / f"{algo}-{env_name}.zip").write_bytes(b"plain values")

    monkeypatch.setattr(hub_load, "download", download)
    monkeypatch.setenv(hub_load.LET_IT_RUN_CODE, "me/other")
    files = hub_load.HubFiles(lambda *_: pytest.fail("the Zoo's own"))
    first = Path(files("mallory/agent", f"ddqn-{ENV}.zip"))
    second = Path(files("mallory/agent", f"ddqn-{ENV}.zip"))
    assert first != second
    assert first.read_bytes() == second.read_bytes() == b"plain values"  # of the first, too: somebody has its path


def test_stacks_that_would_fill_the_memory():
    """Of a few bytes of config.yml; refused before they are made."""
    wrapper = {"stable_baselines3.common.atari_wrappers.AtariWrapper": {"screen_size": 1024}}
    hyperparameters = {"policy": "CnnPolicy", "frame_stack": 1024, "env_wrapper": [wrapper]}
    description = {"env_id": "PongNoFrameskip-v4", "env_kwargs": {}, "hyperparameters": hyperparameters}
    with pytest.raises(InvalidInput, match="its observations hold more than 4194304 numbers"):
        _spaces_of_environment(description)
    hyperparameters["frame_stack"] = 4
    observation_space, _ = _spaces_of_environment(description)
    assert describe_space(observation_space)["shape"] == [4, 1024, 1024]
