package removal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/netctl/netctl/internal/cluster/objects"
)

// configFile is where the agents' configuration is in their container.
const configFile = "--config=/etc/netctl/config.yaml"

// cleanNodes runs `netctl cleanup` on every node and waits for all.
func (r *removal) cleanNodes(ctx context.Context, nodes []string) error {
	pods := make([]objects.Ref, len(nodes))
	for i, node := range nodes {
		pods[i] = objects.Ref{APIVersion: "v1", Kind: "Pod", Namespace: r.daemonSet.Namespace, Name: podName(node)}
		// What a former run has left may have failed: it is made anew.
		if err := r.delete(ctx, pods[i]); err != nil {
			return err
		}
		r.say("Node %s: run 'netctl cleanup' in %s", node, pods[i])
		if r.DryRun {
			continue
		}
		pod, err := cleanupPod(r.template, pods[i], node)
		if err != nil {
			return err
		}
		if err := r.Objects.Create(ctx, pod); err != nil {
			return err
		}
	}
	if r.DryRun {
		return nil
	}
	var errs []error
	for i, node := range nodes {
		errs = append(errs, r.waitClean(ctx, node, pods[i]))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w\nnothing more is deleted until the nodes are clean: run this again, with --skip-node for those that cannot be reached", err)
	}
	for _, pod := range pods {
		if err := r.delete(ctx, pod); err != nil {
			return err
		}
	}
	return nil
}

// waitClean waits until a node is clean, and tells why it is not.
func (r *removal) waitClean(ctx context.Context, node string, pod objects.Ref) error {
	var last objects.Object
	err := poll(ctx, func() (bool, error) {
		o, err := r.Objects.Get(ctx, pod)
		if err != nil {
			return false, err
		}
		last = o
		switch text(o, "status", "phase") {
		case "Succeeded":
			return true, nil
		case "Failed":
			return false, errors.New("'netctl cleanup' failed")
		}
		return false, nil
	})
	if err != nil {
		return fmt.Errorf("node %s: %w%s", node, err, why(last))
	}
	r.say("Node %s: clean", node)
	return nil
}

// why returns what a pod's status says about itself, as the end of a sentence.
func why(pod objects.Object) string {
	said := []string{text(pod, "status", "reason"), text(pod, "status", "message")}
	statuses, _ := at(pod, "status")["containerStatuses"].([]any)
	for _, s := range statuses {
		status, _ := s.(objects.Object)
		for _, state := range []string{"waiting", "terminated"} {
			said = append(said, text(status, "state", state, "reason"), text(status, "state", state, "message"))
		}
	}
	said = slices.DeleteFunc(said, func(s string) bool { return strings.TrimSpace(s) == "" })
	if len(said) == 0 {
		return ""
	}
	return ": " + strings.TrimSpace(strings.Join(said, ": "))
}

// podName names a node's cleanup pod.
func podName(node string) string { return cleanupLabel + "-" + node }

// cleanupPod makes the pod that cleans a node of the agents' template.
func cleanupPod(template objects.Object, name objects.Ref, node string) (objects.Object, error) {
	data, err := json.Marshal(at(template, "spec"))
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	var spec objects.Object
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	containers, _ := spec["containers"].([]any)
	if len(containers) != 1 {
		return nil, fmt.Errorf("make %s: the agents have %d containers, not one", name, len(containers))
	}
	agent, _ := containers[0].(objects.Object)
	agent["args"] = []any{"cleanup", configFile}
	for _, k := range []string{"startupProbe", "readinessProbe", "livenessProbe"} {
		delete(agent, k)
	}
	// The holder beside the agent is an init container that never ends, and mounts a
	// folder that goes below.
	for _, k := range []string{"initContainers", "nodeSelector", "affinity", "serviceAccountName", "serviceAccount", "hostUsers"} {
		delete(spec, k)
	}
	spec["nodeName"] = node
	spec["restartPolicy"] = "Never"
	spec["automountServiceAccountToken"] = false // it asks nobody
	mountParents(spec, agent)
	return objects.Object{
		"apiVersion": name.APIVersion, "kind": name.Kind,
		"metadata": objects.Object{
			"name": name.Name, "namespace": name.Namespace,
			"labels": objects.Object{"app.kubernetes.io/name": cleanupLabel},
		},
		"spec": spec,
	}, nil
}

// mountParents mounts the folders that the agents' own folders are in, because
// what is mounted cannot be removed. The agents' pod folder goes: its mount point
// would be made on the node.
func mountParents(spec, agent objects.Object) {
	parents := func(list []any, keys ...string) []any {
		return slices.DeleteFunc(list, func(v any) bool {
			o, _ := v.(objects.Object)
			at := at(o, keys[:len(keys)-1]...)
			p, _ := at[keys[len(keys)-1]].(string)
			if name := o["name"]; (name == "state" || name == "data") && path.Dir(p) != "/" {
				at[keys[len(keys)-1]] = path.Dir(p)
				if _, ok := o["mountPath"]; ok {
					o["mountPropagation"] = "HostToContainer"
				}
			}
			return o["name"] == "pod"
		})
	}
	volumes, _ := spec["volumes"].([]any)
	spec["volumes"] = parents(volumes, "hostPath", "path")
	mounts, _ := agent["volumeMounts"].([]any)
	agent["volumeMounts"] = parents(mounts, "mountPath")
}
