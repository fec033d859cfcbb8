package lab

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/model"
)

// Status is what a lab consists of, for people and programs.
type Status struct {
	Name     string          `json:"name"`
	Nodes    []NodeStatus    `json:"nodes"`
	Pods     []PodStatus     `json:"pods"`
	Services []ServiceStatus `json:"services"`
}

// NodeStatus is one node.
type NodeStatus struct {
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"`
	PodRanges []string `json:"podRanges"`
	Agent     string   `json:"agent"` // "running (pid N)" or "down"
	Namespace string   `json:"namespace"`
}

// PodStatus is one pod.
type PodStatus struct {
	Name      string   `json:"name"` // namespace/name
	Addresses []string `json:"addresses"`
	Node      string   `json:"node"`
	State     string   `json:"state"`
	Namespace string   `json:"networkNamespace"`
}

// ServiceStatus is one Service.
type ServiceStatus struct {
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"`
	Ports     []string `json:"ports"`
	Endpoints []string `json:"endpoints"`
}

// Status describes the lab as it is.
func (l *Lab) Status() (Status, error) {
	have, err := l.read()
	if err != nil {
		return Status{}, err
	}
	state, _, err := cluster.Read(l.clusterDir())
	if err != nil {
		return Status{}, fmt.Errorf("read the cluster's manifests: %w", err)
	}
	s := Status{Name: l.cfg.Name}
	for _, n := range l.NodeNames() {
		node := NodeStatus{Name: n, Addresses: l.hostIPs(n), PodRanges: texts(state.NodePrefixes(n)), Agent: "down", Namespace: l.netnsName(n)}
		if pid, ok := l.AgentPID(n); ok {
			node.Agent = fmt.Sprintf("running (pid %d)", pid)
		}
		s.Nodes = append(s.Nodes, node)
	}
	for _, p := range have.pods {
		s.Pods = append(s.Pods, PodStatus{
			Name: p.Name.String(), Addresses: texts(p.Addresses), Node: p.Node, State: l.podState(p), Namespace: l.netnsName(podPart(p.Name)),
		})
	}
	slices.SortFunc(s.Pods, func(a, b PodStatus) int { return strings.Compare(a.Name, b.Name) })
	slicesOf := endpointSlices(have.services, have.pods)
	for _, svc := range have.services {
		v := ServiceStatus{Name: svc.Name.String(), Addresses: texts(svc.ClusterIPs)}
		if svc.Headless {
			v.Addresses = []string{"headless"}
		}
		if svc.ExternalName != "" {
			v.Addresses = []string{svc.ExternalName}
		}
		for _, p := range svc.Ports {
			v.Ports = append(v.Ports, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
		}
		for _, es := range slicesOf {
			if es.Service != svc.Name.Name || es.Name.Namespace != svc.Name.Namespace {
				continue
			}
			for _, e := range es.Endpoints {
				v.Endpoints = append(v.Endpoints, e.Address.String())
			}
		}
		s.Services = append(s.Services, v)
	}
	slices.SortFunc(s.Services, func(a, b ServiceStatus) int { return strings.Compare(a.Name, b.Name) })
	return s, nil
}

// podState is the pod's phase, unless its processes have ended: the lab does
// not start them again.
func (l *Lab) podState(p *cluster.Pod) string {
	if p.Phase == "Running" && !p.HostNetwork && len(processesIn(l.netnsPath(podPart(p.Name)))) == 0 {
		return "Exited"
	}
	return p.Phase
}

func texts[T fmt.Stringer](list []T) []string {
	out := make([]string, 0, len(list))
	for _, v := range list {
		out = append(out, v.String())
	}
	return out
}

// Exec starts a command in a pod, on a node or on the outside host, after
// prepare has set its streams. The caller waits for it; the lock may be given
// back before.
func (l *Lab) Exec(target, container string, args []string, prepare func(*exec.Cmd)) (*exec.Cmd, error) {
	if l.isHost(target) {
		cmd, err := l.hostCommand(target, args)
		if err != nil {
			return nil, err
		}
		prepare(cmd)
		return cmd, l.start(target, cmd)
	}
	pod, err := l.findPod(target)
	if err != nil {
		return nil, err
	}
	env, dir := []string(nil), ""
	if i := slices.IndexFunc(pod.Containers, func(c cluster.Container) bool { return c.Name == container }); i >= 0 {
		if env, err = containerEnv(pod, &pod.Containers[i]); err != nil {
			return nil, err
		}
		dir = pod.Containers[i].WorkingDir
	} else if container != "" {
		return nil, fmt.Errorf("pod %s has no container %q", pod.Name, container)
	}
	cmd, err := l.command(pod, args, env, dir)
	if err != nil {
		return nil, err
	}
	prepare(cmd)
	part := podPart(pod.Name)
	if pod.HostNetwork {
		part = pod.Node
	}
	return cmd, l.start(part, cmd)
}

func (l *Lab) isHost(target string) bool {
	return target == outsideNS || target == fabricNS || slices.Contains(l.NodeNames(), target)
}

// findPod finds a pod by "name", "namespace/name" or a beginning of the name
// that only one pod has.
func (l *Lab) findPod(target string) (*cluster.Pod, error) {
	have, err := l.read()
	if err != nil {
		return nil, err
	}
	name := model.Name{Namespace: "default", Name: target}
	if ns, rest, ok := strings.Cut(target, "/"); ok {
		name = model.Name{Namespace: ns, Name: rest}
	}
	if p := have.pod(name); p != nil {
		return p, nil
	}
	var found []*cluster.Pod
	var names []string
	for _, p := range have.pods {
		if p.Name.Namespace == name.Namespace && strings.HasPrefix(p.Name.Name, name.Name) {
			found = append(found, p)
			names = append(names, p.Name.Name)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, fmt.Errorf("no pod, node or host %q in lab %q; 'netctl lab status' lists them", target, l.cfg.Name)
	default:
		return nil, fmt.Errorf("%q is the beginning of several pods: %s", target, strings.Join(names, ", "))
	}
}

// Logs writes what a container, an agent or the outside host has printed.
func (l *Lab) Logs(w io.Writer, target, container string) error {
	if target == outsideNS {
		return copyFile(w, l.path("outside.log"))
	}
	if l.isHost(target) {
		return copyFile(w, l.path("nodes", target, "agent.log"))
	}
	pod, err := l.findPod(target)
	if err != nil {
		return err
	}
	if container == "" {
		container = pod.Containers[0].Name
	}
	err = copyFile(w, l.logPath(pod.Name, container))
	if errors.Is(err, fs.ErrNotExist) {
		var names []string
		for _, c := range pod.Containers {
			names = append(names, c.Name)
		}
		return fmt.Errorf("pod %s has no container %q, only %s", pod.Name, container, strings.Join(names, ", "))
	}
	return err
}

// Kind returns the kind that a user means by "pod", "po", "Deployment", ….
func Kind(word string) (string, error) {
	kinds := map[string]string{
		"po": "Pod", "deploy": "Deployment", "svc": "Service", "ns": "Namespace", "netpol": "NetworkPolicy",
	}
	for _, k := range []string{"Pod", "Deployment", "Service", "Namespace", "NetworkPolicy", "EndpointSlice"} {
		kinds[strings.ToLower(k)], kinds[strings.ToLower(k)+"s"] = k, k
	}
	kinds["networkpolicies"] = "NetworkPolicy"
	if k, ok := kinds[strings.ToLower(word)]; ok {
		return k, nil
	}
	return "", fmt.Errorf("kind %q: the lab knows pod, deployment, service, namespace, networkpolicy and endpointslice", word)
}

// withOutput runs a command in the lab to its end and returns what it printed.
func (l *Lab) withOutput(target string, args ...string) (string, error) {
	var out strings.Builder
	cmd, err := l.Exec(target, "", args, func(c *exec.Cmd) { c.Stdout, c.Stderr = &out, &out })
	if err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s on %s: %w: %s", strings.Join(args, " "), target, err, strings.TrimSpace(out.String()))
	}
	return out.String(), nil
}

// agentLogs is for error messages: the end of what an agent printed.
func (l *Lab) agentLogs(node string) string {
	data, err := os.ReadFile(l.path("nodes", node, "agent.log"))
	if err != nil {
		return err.Error()
	}
	const tail = 2000
	return string(data[max(0, len(data)-tail):])
}
