"""The files of infra/, without an engine: their schemas, and that the images, secrets and addresses that they name are there."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import kubernetes_validate
import pytest
import yaml

from flows.settings import Settings

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
SCHEMAS = ROOT.parent / "shared" / "schemas"
COMPOSE: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
KUBERNETES = "1.34.1"
TAGGED = re.compile(r"[\w./-]+:v?\d+(\.\d+)+[\w.-]*")
needs_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason=f"KubeRay's and Prefect's schemas are not at {SCHEMAS}")


def _tool(*words: str) -> None:
    """Run a tool of this environment; what it finds fails the test."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name(words[0])), *words[1:]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Secrets as a person makes them."""
    folder = tmp_path_factory.mktemp("infra") / "secrets"
    subprocess.run([str(INFRA / "make-secrets.sh"), str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def manifests(secrets: Path) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send, of the whole and of the isolated variant."""
    if not (kubectl := shutil.which("kubectl")):
        pytest.skip("kubectl is not installed (Debian: kubernetes-client), so the kustomizations are not built")
    folder = secrets.parent / "kubernetes"
    shutil.copytree(INFRA / "kubernetes", folder, ignore=shutil.ignore_patterns("secrets"))
    shutil.copytree(secrets, folder / "secrets")
    built = [
        subprocess.run([kubectl, "kustomize", str(each)], capture_output=True, text=True, check=True).stdout
        for each in (folder, folder / "isolated")
    ]
    return [document for text in built for document in yaml.safe_load_all(text)]


def test_the_dockerfile_is_clean_pinned_and_runs_as_nobody_special() -> None:
    _tool("hadolint", str(INFRA / "Dockerfile"))
    text = (INFRA / "Dockerfile").read_text()
    assert all(TAGGED.fullmatch(image) for image in re.findall(r"^FROM (\S+)", text, re.M))
    assert re.findall(r"^USER (.+)", text, re.M) == ["10001:10001"]
    installs = [line for line in text.splitlines() if "pip install" in line and "--no-deps" not in line]
    assert installs
    assert all("--constraint infra/requirements.lock" in line for line in installs)
    copied = {word for line in re.findall(r"^COPY (?!--from)(.+)", text, re.M) for word in line.split()[:-1] if word[0] != "-"}
    allowed = {line[1:] for line in (INFRA / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_compose_follows_its_specification() -> None:
    _tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(INFRA / "compose.yaml"))


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_kept_alive_and_open_to_this_machine_alone(name: str) -> None:
    service = SERVICES[name]
    assert TAGGED.fullmatch(service["image"])
    once = name == "buckets"
    assert service["restart"] == ("on-failure" if once else "unless-stopped")
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    # What others wait for, or a browser opens, says when it is well.
    waited = {other for each in SERVICES.values() for other in each.get("depends_on", {})}
    assert once or "healthcheck" in service or name not in waited
    declared = {key for key in service.get("depends_on", {}) if key not in SERVICES}
    assert declared == set()
    used = {volume.split(":")[0] for volume in service.get("volumes", [])}
    assert used <= COMPOSE["volumes"].keys()


def _environment(service: dict[str, Any]) -> dict[str, str]:
    return dict(service.get("environment", {}))


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_gets_each_secret_that_it_names_from_a_file_that_is_made(name: str, secrets: Path) -> None:
    service = SERVICES[name]
    text = json.dumps(service)
    named = set(re.findall(r"/run/secrets/([\w.]+)", text))
    assert named == set(service.get("secrets", []))
    for secret in named:
        assert COMPOSE["secrets"][secret]["file"] == f"secrets/{secret}"
        assert (secrets / secret).stat().st_size > 0
        # Nothing secret stands in the file itself.
        assert (secrets / secret).read_text().strip() not in {"", *map(str, _environment(service).values())} - {"headstart"}


def _settings_of(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith("HEADSTART_")}


def test_settings_of_compose_and_kubernetes_are_ones_that_headstart_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    kubernetes = dict(line.split("=", 1) for line in (INFRA / "kubernetes/settings.env").read_text().split())
    image = dict(re.findall(r"(HEADSTART_\w+)=(\S+)", (INFRA / "Dockerfile").read_text()))
    for environment in (*map(_environment, SERVICES.values()), kubernetes, image):
        for name, value in _settings_of(environment).items():
            assert name.removeprefix("HEADSTART_").lower() in Settings.model_fields, name
            monkeypatch.setenv(name, value)
        Settings()  # raises on a value that a setting does not take
    shared = ("HEADSTART_WORKSPACE", "HEADSTART_STORAGE_ROOT")
    assert {name: kubernetes[name] for name in shared} == {name: image[name] for name in shared}


def test_addresses_in_compose_lead_to_a_service_and_a_port_that_it_listens_on() -> None:
    found = 0
    for service in SERVICES.values():
        for value in _environment(service).values():
            if "://" not in str(value) or value.startswith(("s3:", "http://127.0.0.1")):
                continue
            parts = urlsplit(value)
            assert parts.hostname in SERVICES, value
            there = SERVICES[parts.hostname]
            listens = re.findall(r"port[= \",]+\"?(\d+)", json.dumps(there["command"])) if "command" in there else ["5432"]
            assert str(parts.port) in listens, (value, listens)
            found += 1
    assert found > 10


def test_the_entrypoint_gives_secrets_from_files_and_says_which_one_is_missing(secrets: Path, tmp_path: Path) -> None:
    text = (INFRA / "entrypoint.sh").read_text()
    script = tmp_path / "entrypoint.sh"
    script.write_text(text.replace("/run/secrets/", f"{secrets}/"))
    env = {"PATH": os.environ["PATH"], "PGPASSWORD_FILE": str(secrets / "prefect_db_password"), "OTHER_FILE": "/etc/hostname"}
    shown = subprocess.run(["sh", str(script), "env"], env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    assert f"PGPASSWORD={(secrets / 'prefect_db_password').read_text()}" in shown
    assert "OTHER_FILE=/etc/hostname" in shown
    assert not any(line.startswith("PGPASSWORD_FILE") for line in shown)
    env["LOGIN_FILE"] = f"{secrets}/nowhere"
    done = subprocess.run(["sh", str(script), "env"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "LOGIN_FILE" in done.stderr
    assert "make-secrets.sh" in done.stderr


def test_secrets_are_made_once_and_agree_with_each_other(secrets: Path) -> None:
    before = {file.name: file.read_bytes() for file in secrets.iterdir()}
    subprocess.run([str(INFRA / "make-secrets.sh"), str(secrets)], check=True)
    assert {file.name: file.read_bytes() for file in secrets.iterdir()} == before
    (identity,) = json.loads(before["s3_identities.json"])["identities"]
    (keys,) = identity["credentials"]
    assert [keys["accessKey"].encode(), keys["secretKey"].encode()] == [before["s3_access_key"], before["s3_secret_key"]]
    assert f"admin_password = {before['mlflow_password'].decode()}\n".encode() in before["mlflow_auth.ini"]


def _closed(schema: Any) -> Any:
    """The schema, refusing keys that it does not name; KubeRay's allow any, and a typing error would pass."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and "additionalProperties" not in schema:
        closed["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    return closed


@functools.cache
def _ray_schema(kind: str) -> jsonschema.Draft202012Validator:
    text = (SCHEMAS / f"ray.io_{kind.lower()}s.yaml").read_text()
    # A megabyte, which takes the loader in Python a minute.
    definition = yaml.load(text, yaml.CSafeLoader)
    (version,) = (each for each in definition["spec"]["versions"] if each["name"] == "v1")
    schema = _closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)  # `jsonschema.validate` would check the schema, too, for a minute


def test_manifests_of_kubernetes_follow_its_schemas(manifests: list[dict[str, Any]]) -> None:
    plain = [each for each in manifests if not each["apiVersion"].startswith("ray.io/")]
    assert len(plain) > 20
    for manifest in plain:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@needs_schemas
def test_manifests_of_ray_follow_kuberays_schemas(manifests: list[dict[str, Any]]) -> None:
    kinds = []
    for manifest in manifests:
        if manifest["apiVersion"].startswith("ray.io/"):
            _ray_schema(manifest["kind"]).validate(manifest)
            kinds.append(manifest["kind"])
    assert kinds == ["RayCluster", "RayJob"]
    mistyped = json.loads(json.dumps(manifests[[each["kind"] for each in manifests].index("RayCluster")]))
    mistyped["spec"]["workerGroupSpecs"][0]["minReplica"] = 0
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        _ray_schema("RayCluster").validate(mistyped)


@needs_schemas
def test_the_file_of_deployments_follows_prefects_schema() -> None:
    file = yaml.safe_load((INFRA / "prefect.yaml").read_text())
    jsonschema.validate(file, json.loads((SCHEMAS / "prefect.yaml.schema.json").read_text()))


def _pods(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod's spec within a manifest."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for each in value.values():
            yield from _pods(each)
    elif isinstance(value, list):
        for each in value:
            yield from _pods(each)


def _job_template() -> dict[str, Any]:
    return json.loads((INFRA / "kubernetes/base-job-template.json").read_text())  # type: ignore[no-any-return]


def _job() -> dict[str, Any]:
    """A Job of the pool's template, as Prefect's worker fills it in."""
    given: dict[str, Any] = {
        "labels": {"a": "b"},
        "env": [{"name": "A", "value": "b"}],
        "command": ["prefect", "flow-run", "execute"],
    }
    given |= {"name": "retrain", "namespace": "headstart", "image": "headstart:0.1.0", "cpu": "1", "memory": "4Gi"}

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(each) for key, each in value.items()}
        if isinstance(value, list):
            return [filled(each) for each in value]
        if whole := re.fullmatch(r"\{\{ (\w+) \}\}", str(value)):
            return given[whole[1]]
        return re.sub(r"\{\{ (\w+) \}\}", lambda match: given[match[1]], value) if isinstance(value, str) else value

    job: dict[str, Any] = filled(_job_template()["job_configuration"]["job_manifest"])
    pod = job["spec"]["template"]["spec"]
    # Prefect's own template has them there, and its worker takes them out.
    job["spec"] |= {key: pod.pop(key) for key in ("parallelism", "completions")}
    return job


def test_the_template_of_flow_runs_makes_a_job_and_takes_what_deploy_gives_it() -> None:
    kubernetes_validate.validate(_job(), KUBERNETES, strict=True)
    template = _job_template()
    names = template["variables"]["properties"].keys()
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(names)
    assert "default" not in template["variables"]["properties"]["image"], "deploy asks for one"


def test_every_pod_is_unprivileged_asks_for_room_and_keeps_secrets_out_of_its_manifest(
    manifests: list[dict[str, Any]], secrets: Path
) -> None:
    pods = [pod for manifest in (*manifests, _job()) for pod in _pods(manifest)]
    assert len(pods) >= 9
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        for container in pod["containers"]:
            assert TAGGED.fullmatch(container["image"]), container["image"]
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert container["resources"]["limits"]["memory"]
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    hidden = [file.read_text() for file in secrets.iterdir() if file.name != "mlflow_user"]
    for manifest in manifests:
        if manifest["kind"] != "Secret":
            text = json.dumps(manifest)
            assert not any(secret in text for secret in hidden)


def _references(value: Any) -> Iterator[tuple[str, str, str]]:
    """Kind, name and key of every ConfigMap and Secret that is named; the key is '' where all of it is taken."""
    if isinstance(value, dict):
        for word, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
            if word in value:
                yield kind, value[word]["name"], value[word]["key"]
        if "configMapRef" in value:
            yield "ConfigMap", value["configMapRef"]["name"], ""
        if isinstance(value.get("secret"), dict) and "items" in value["secret"]:
            name = value["secret"].get("secretName") or value["secret"]["name"]
            yield from (("Secret", name, item["key"]) for item in value["secret"]["items"])
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _references(each)


def test_secrets_config_maps_claims_and_services_that_are_named_are_there(manifests: list[dict[str, Any]]) -> None:
    known = {(each["kind"], each["metadata"]["name"]): each for each in manifests}
    named = set(_references([*manifests, _job()]))
    assert len(named) > 12
    for kind, name, key in named:
        assert (kind, name) in known, (kind, name)
        assert not key or key in known[kind, name]["data"], (kind, name, key)
    ray = known["RayCluster", "headstart"]["spec"]
    assert "auth_token" in known["Secret", ray["authOptions"]["secretName"]]["data"]
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for each in (*manifests, _job())
        for pod in _pods(each)
        for volume in pod.get("volumes", [])
        if "persistentVolumeClaim" in volume
    }
    assert claims == {"workspace", "storage"} == {name for kind, name in known if kind == "PersistentVolumeClaim"}
    values = known["ConfigMap", "settings"]["data"] | known["ConfigMap", "flow-settings"]["data"]
    texts = [*values.values(), *re.findall(r"postgresql\S+?(?=\")", json.dumps(manifests))]
    for address in texts:
        host, port = urlsplit(address).hostname, urlsplit(address).port if "://" in address else None
        if host is None or port is None:
            continue
        if host == "headstart-head-svc":  # KubeRay's service of the cluster `headstart`
            assert port in {each["containerPort"] for each in next(_pods(ray["headGroupSpec"]))["containers"][0]["ports"]}
        else:
            assert port in {each["port"] for each in known["Service", host]["spec"]["ports"]}, address


def test_the_head_stays_and_workers_come_and_go(manifests: list[dict[str, Any]]) -> None:
    (cluster,) = (each["spec"] for each in manifests if each["kind"] == "RayCluster")
    (job,) = (each["spec"]["rayClusterSpec"] for each in manifests if each["kind"] == "RayJob")
    import ray

    for spec in (cluster, job):
        assert spec["rayVersion"] == ray.__version__
        assert spec["authOptions"]["mode"] == "token"
        head = spec["headGroupSpec"]
        assert head["rayStartParams"]["num-cpus"] == "0"
        assert head["template"]["metadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
        terms = head["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert "spot" in json.dumps(terms)
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert [groups[name]["minReplicas"] for name in ("cpu", "gpu")] == [0, 0]
    assert "nvidia.com/gpu" in groups["gpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert "spot" in json.dumps(groups["gpu"]["template"]["spec"]["tolerations"])


def test_nothing_reaches_a_pod_but_what_a_policy_names(manifests: list[dict[str, Any]]) -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in manifests if each["kind"] == "NetworkPolicy"}
    assert policies["nothing-comes-in"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    services = {each["metadata"]["name"]: each["spec"] for each in manifests if each["kind"] == "Service"}
    for name, service in services.items():
        assert policies[name]["podSelector"]["matchLabels"] == service["selector"]
        allowed = {port["port"] for rule in policies[name]["ingress"] for port in rule["ports"]}
        assert allowed == {port["port"] for port in service["ports"]}
