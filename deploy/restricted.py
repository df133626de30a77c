"""Fails where a pod template is laxer than these manifests promise. Usage: restricted.py FILE...

Beside the API server's profile "restricted": a read-only root, no token of a service account, all three probes, memory
limits, and nothing from a tag that moves.
"""

import sys

import yaml


def faults(pod, where):
    """What is missing."""
    of_pod = pod.get("securityContext", {})
    if of_pod.get("runAsNonRoot") is not True or not of_pod.get("runAsUser"):
        yield f"{where}: may run as root"
    if of_pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield f"{where}: no seccomp profile"
    if pod.get("automountServiceAccountToken") is not False:
        yield f"{where}: gets a token of the API server"
    if any(pod.get(key) for key in ["hostNetwork", "hostPID", "hostIPC"]):
        yield f"{where}: shares a namespace of the host"
    if any("hostPath" in volume for volume in pod.get("volumes", [])):
        yield f"{where}: mounts a path of the host"
    for container in pod["containers"] + pod.get("initContainers", []):
        name = f"{where}, {container['name']}"
        context = container.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield f"{name}: may gain privileges"
        if context.get("readOnlyRootFilesystem") is not True:
            yield f"{name}: may write to its image"
        if context.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{name}: keeps capabilities"
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"]:
            if probe not in container:
                yield f"{name}: no {probe}"
        resources = container.get("resources", {})
        if "memory" not in resources.get("limits", {}) or "cpu" not in resources.get("requests", {}):
            yield f"{name}: no limit of memory or no request of CPU"
        if container["image"].endswith(":latest"):
            yield f"{name}: an image that moves"


def main():
    workloads, budgets, found = [], set(), []
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            for document in yaml.safe_load_all(file):
                name = document["metadata"]["name"]
                if document["kind"] == "PodDisruptionBudget":
                    budgets.add(name)
                if document["kind"] in ["Deployment", "StatefulSet"]:
                    workloads.append((f"{path}: {document['kind']} {name}", name, document["spec"]))
    for where, name, spec in workloads:
        found += faults(spec["template"]["spec"], where)
        if spec["replicas"] > 1 and name not in budgets:
            found.append(f"{where}: no PodDisruptionBudget")
    for fault in found:
        print(fault)
    if found or not workloads:
        sys.exit(f"{len(found)} faults in {len(workloads)} pod templates")
    print(f"{len(workloads)} pod templates are restricted")


main()
