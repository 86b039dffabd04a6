"""The fields that KubeRay itself defines (API ray.io/v1, operator 1.7), with their types; pod templates are Kubernetes' own.

Written from KubeRay's API reference: no package on PyPI has its custom resource definitions. A field is refused when it is not here.
"""

from typing import Any

STRING, INTEGER, NUMBER, BOOLEAN, ANY = ({"type": t} for t in ("string", "integer", "number", "boolean", "object"))
STRINGS: dict[str, Any] = {"type": "object", "additionalProperties": STRING}
LIST: dict[str, Any] = {"type": "array"}


def _object(required: str = "", **fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


def _one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


METADATA = _object("name", name=STRING, namespace=STRING, labels=STRINGS, annotations=STRINGS)

_GROUP = {"resources": STRINGS, "labels": STRINGS, "rayStartParams": STRINGS, "template": ANY}

RAY_CLUSTER = _object(
    "headGroupSpec",
    rayVersion=STRING,
    enableInTreeAutoscaling=BOOLEAN,
    suspend=BOOLEAN,
    managedBy=STRING,
    headServiceAnnotations=STRINGS,
    upgradeStrategy=_object(type=_one_of("Recreate", "None")),
    authOptions=_object(mode=_one_of("disabled", "token"), secretName=STRING, enableK8sTokenAuth=BOOLEAN),
    tlsOptions=_object(enabled=BOOLEAN),
    gcsFaultToleranceOptions=ANY,
    historyServerOptions=ANY,
    networkPolicy=ANY,
    autoscalerOptions=_object(
        version=_one_of("v1", "v2"),
        upscalingMode=_one_of("Default", "Aggressive", "Conservative"),
        idleTimeoutSeconds=INTEGER,
        resources=_object(requests=ANY, limits=ANY, claims=LIST),
        image=STRING,
        imagePullPolicy=STRING,
        securityContext=ANY,
        env=LIST,
        envFrom=LIST,
        volumeMounts=LIST,
        command=LIST,
        args=LIST,
    ),
    headGroupSpec=_object(
        "template rayStartParams",
        **_GROUP,
        headService=ANY,
        enableIngress=BOOLEAN,
        ingressOptions=ANY,
        serviceType=STRING,
    ),
    workerGroupSpecs={
        "type": "array",
        "items": _object(
            "groupName minReplicas maxReplicas template rayStartParams",
            **_GROUP,
            groupName=STRING,
            replicas=INTEGER,
            minReplicas=INTEGER,
            maxReplicas=INTEGER,
            numOfHosts=INTEGER,
            idleTimeoutSeconds=INTEGER,
            priority=INTEGER,
            suspend=BOOLEAN,
            scaleStrategy=_object(workersToDelete=LIST),
        ),
    },
)

RAY_JOB = _object(
    "entrypoint",
    entrypoint=STRING,
    submissionMode=_one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    rayClusterSpec=RAY_CLUSTER,
    clusterSelector=STRINGS,
    shutdownAfterJobFinishes=BOOLEAN,
    ttlSecondsAfterFinished=INTEGER,
    activeDeadlineSeconds=INTEGER,
    preRunningDeadlineSeconds=INTEGER,
    backoffLimit=INTEGER,
    suspend=BOOLEAN,
    managedBy=STRING,
    jobId=STRING,
    metadata=STRINGS,
    runtimeEnvYAML=STRING,
    entrypointNumCpus=NUMBER,
    entrypointNumGpus=NUMBER,
    entrypointResources=STRING,
    submitterPodTemplate=ANY,
    submitterConfig=_object(backoffLimit=INTEGER),
    deletionStrategy=ANY,
)


def _resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return _object(
        "apiVersion kind metadata spec",
        apiVersion=_one_of("ray.io/v1"),
        kind=_one_of(kind),
        metadata=METADATA,
        spec=spec,
    )


RESOURCES = {"RayCluster": _resource("RayCluster", RAY_CLUSTER), "RayJob": _resource("RayJob", RAY_JOB)}
