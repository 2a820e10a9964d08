"""What deploy/ says, against schemas, against itself, and against the embedded server's flags, protos and metrics."""

import copy
import json
import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving import server_configs
from serving.model_server import config_protos, flags, monitoring
from serving.model_server.batching import read_parameters
from serving.model_server.model_config import parse_text

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFESTS = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in (DEPLOY / "kubernetes").glob("*.yaml")}
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))


def container(manifest):
    (only,) = MANIFESTS[manifest]["spec"]["template"]["spec"]["containers"]
    return only


def served():
    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse((DEPLOY / "config" / "models.config").read_text("utf-8"), config)
    return {entry.name: entry for entry in config.model_config_list.config}


@pytest.mark.parametrize("name", sorted(MANIFESTS))
def test_a_manifest_is_valid_by_the_schemas_of_an_older_and_of_the_newest_kubernetes(name):
    for version in ("1.29", kubernetes_validate.latest_version()):
        kubernetes_validate.validate(MANIFESTS[name], version, strict=True)


def test_the_validator_refuses_what_is_wrong():
    version = kubernetes_validate.latest_version()
    for spoil in (
        lambda spec: spec.pop("selector"),
        lambda spec: spec.update(replicas="two"),
        lambda spec: spec.update(replica=2),
        lambda spec: spec["template"]["spec"]["containers"][0].update(readynessProbe={}),
    ):
        wrong = copy.deepcopy(MANIFESTS["deployment"])
        spoil(wrong["spec"])
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, version, strict=True)


def test_all_that_is_needed_is_there_and_is_applied():
    kinds = sorted(manifest["kind"] for manifest in MANIFESTS.values())
    assert kinds == ["Deployment", "Deployment", "HorizontalPodAutoscaler", "PersistentVolumeClaim", "Service"]
    applied = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text("utf-8"))
    assert sorted(applied["resources"]) == sorted(f"kubernetes/{name}.yaml" for name in MANIFESTS)
    (generated,) = applied["configMapGenerator"]
    assert sorted(generated["files"]) == sorted(f"config/{path.name}" for path in (DEPLOY / "config").iterdir())
    for name in ("deployment", "canary"):
        volumes = {one["name"]: one for one in MANIFESTS[name]["spec"]["template"]["spec"]["volumes"]}
        assert volumes["config"]["configMap"]["name"] == generated["name"]
        assert volumes["models"]["persistentVolumeClaim"]["claimName"] == MANIFESTS["storage"]["metadata"]["name"]
        assert {one["name"] for one in container(name)["volumeMounts"]} == volumes.keys()


def test_the_service_takes_both_tracks_and_each_deployment_its_own():
    service, pods = MANIFESTS["service"]["spec"], {}
    ports = {port["name"]: port["containerPort"] for port in container("deployment")["ports"]}
    assert {port["targetPort"]: port["port"] for port in service["ports"]} == ports
    for name in ("deployment", "canary"):
        spec = MANIFESTS[name]["spec"]
        pods[name] = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= pods[name].items()
        assert service["selector"].items() <= pods[name].items()
        image = container(name)["image"]
        assert pods[name]["app.kubernetes.io/version"] == image.rpartition(":")[2]
    assert pods["deployment"]["track"] != pods["canary"]["track"]
    target = MANIFESTS["autoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", MANIFESTS["deployment"]["metadata"]["name"])
    assert "replicas" not in MANIFESTS["deployment"]["spec"], "they are the autoscaler's"
    assert MANIFESTS["canary"]["spec"]["replicas"] == 0


def test_probes_ask_ports_that_are_there_for_a_model_that_is_served():
    ports = {port["name"] for port in container("deployment")["ports"]}
    for probe in ("startupProbe", "readinessProbe"):
        asked = container("deployment")[probe]["httpGet"]
        assert asked["port"] in ports
        assert re.fullmatch("/v1/models/(.*)/metadata", asked["path"])[1] in served()
    assert container("deployment")["livenessProbe"]["tcpSocket"]["port"] in ports


@pytest.mark.parametrize("where", ["compose", "deployment", "canary"])
def test_every_flag_is_the_servers_and_names_a_file_that_is_there(where):
    words = COMPOSE["services"]["tensorflow-serving"]["command"] if where == "compose" else container(where)["args"]
    named = dict(word.removeprefix("--").split("=") for word in words)
    assert named.keys() <= flags.FLAGS.keys()
    for name, value in named.items():
        if name.endswith("_file"):
            assert (DEPLOY / "config" / value.removeprefix("/config/")).is_file()
    started = server_configs.flags("/config", enable_batching=True)
    assert {word.removeprefix("--").split("=")[0] for word in started} <= named.keys()


def test_the_configurations_are_read_by_the_servers_readers():
    for name, entry in served().items():
        assert entry.base_path == f"/models/{name}"
        assert set(entry.version_labels.values()) <= set(entry.model_version_policy.specific.versions)
    assert read_parameters(DEPLOY / "config" / "batching.config").limit == 32
    config = config_protos.MonitoringConfig()
    parse_text(DEPLOY / "config" / "monitoring.config", config)
    assert config.prometheus_config.enable
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8"))["scrape_configs"][0]
    annotations = MANIFESTS["deployment"]["spec"]["template"]["metadata"]["annotations"]
    paths = {config.prometheus_config.path, scraped["metrics_path"], annotations["prometheus.io/path"]}
    assert paths == {monitoring.DEFAULT_PATH}


def test_compose_mounts_what_is_there_and_its_services_find_each_other():
    services = COMPOSE["services"]
    for service in services.values():
        assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+", service["image"]), "an image has its version"
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or source == "../exports" or (DEPLOY / source).exists()
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")
        assert set(service.get("depends_on", ())) <= services.keys()
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8"))["scrape_configs"][0]
    assert scraped["static_configs"] == [{"targets": ["tensorflow-serving:8501"]}]
    (source,) = yaml.safe_load((DEPLOY / "grafana" / "datasources.yaml").read_text("utf-8"))["datasources"]
    assert re.fullmatch(r"http://(\w+):9090", source["url"])[1] in services
    (provider,) = yaml.safe_load((DEPLOY / "grafana" / "dashboards.yaml").read_text("utf-8"))["providers"]
    assert any(provider["options"]["path"] in volume for volume in services["grafana"]["volumes"])


def test_the_board_draws_metrics_and_labels_that_the_server_has():
    board = json.loads((DEPLOY / "grafana" / "board.json").read_text("utf-8"))
    (source,) = yaml.safe_load((DEPLOY / "grafana" / "datasources.yaml").read_text("utf-8"))["datasources"]
    metrics = {metric.name: metric for metric in monitoring.METRICS}
    places = set()
    for panel in board["panels"]:
        places.add((panel["gridPos"]["x"], panel["gridPos"]["y"]))
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == source["uid"]
            drawn = re.findall(r":tensorflow:[\w:]+", target["expr"])
            assert drawn
            for name in drawn:
                metric = metrics[re.sub("_(bucket|sum|count)$", "", name) if name not in metrics else name]
                assert (metric.kind == "histogram") == (name not in metrics)
                grouped = {one for by in re.findall(r"by \(([^)]*)\)", target["expr"]) for one in by.split(", ")}
                assert grouped | set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= {*metric.labels, "le"}
    assert len(places) == len(board["panels"])
