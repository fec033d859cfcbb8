package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/model"
)

const (
	podInterface = "eth0"
	// cniTimeout bounds one call of the plugin, which bounds itself far below.
	cniTimeout = 30 * time.Second
	// cniRetry is how long a pod that is to be tried again later is tried, every
	// cniPause: a node that claims its pod range has none in its first moment.
	cniRetry = 10 * time.Second
	cniPause = 100 * time.Millisecond
	// startWait is how long a container may take to listen on its port before
	// the pod counts as ready anyway.
	startWait = 3 * time.Second
	// podGrace is how long a pod's processes have to end when they are asked to;
	// Kubernetes gives them 30 s, which nobody waits for here.
	podGrace = 2 * time.Second
)

// sandbox is what the lab remembers of a pod besides its object: what a CNI
// runtime keeps.
type sandbox struct {
	ContainerID string `json:"containerID"`
	Node        string `json:"node"`
}

func podPart(n model.Name) string { return "pod." + n.Namespace + "." + n.Name }

func (l *Lab) podDir(n model.Name) string { return l.path("pods", n.Namespace+"_"+n.Name) }

// createPod does for a scheduled pod what a kubelet and its runtime do. What a
// failure leaves is removed.
func (l *Lab) createPod(ctx context.Context, pod *cluster.Pod) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("pod %s on %s: %w", pod.Name, pod.Node, err), l.deletePod(context.WithoutCancel(ctx), pod.Name))
		}
	}()
	if err := os.MkdirAll(l.podDir(pod.Name), 0o755); err != nil {
		return fmt.Errorf("create its directory: %w", err)
	}
	pod.UID = newUID()
	pod.Phase = "Pending"
	pod.HostIPs = l.hostIPs(pod.Node)
	if pod.HostNetwork {
		for _, ip := range pod.HostIPs {
			pod.Addresses = append(pod.Addresses, netip.MustParseAddr(ip))
		}
	} else if err := l.addSandbox(ctx, pod); err != nil {
		return err
	}
	if err := l.writePodFiles(pod); err != nil {
		return err
	}
	if err := l.writePod(pod); err != nil { // its address is known before it speaks
		return err
	}
	for i := range pod.Containers {
		if err := l.startContainer(pod, &pod.Containers[i]); err != nil {
			return err
		}
	}
	if err := l.awaitPorts(ctx, pod); err != nil {
		return err
	}
	pod.Phase, pod.Ready = "Running", true
	return l.writePod(pod)
}

// addSandbox makes the pod's namespace and has the CNI plugin put eth0 into it.
func (l *Lab) addSandbox(ctx context.Context, pod *cluster.Pod) error {
	sb := sandbox{ContainerID: newContainerID(), Node: pod.Node}
	data, err := json.Marshal(sb)
	if err != nil {
		return fmt.Errorf("encode its sandbox: %w", err)
	}
	if err := os.WriteFile(l.podDir(pod.Name)+"/sandbox.json", data, 0o600); err != nil {
		return fmt.Errorf("remember its sandbox: %w", err)
	}
	ns, err := l.createNamespace(podPart(pod.Name))
	if err != nil {
		return err
	}
	if err := ns.Close(); err != nil {
		return fmt.Errorf("close its namespace: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, cniTimeout)
	defer cancel()
	res, err := l.cniAdd(ctx, pod, sb.ContainerID)
	if err != nil {
		return fmt.Errorf("cni add: %w", err)
	}
	result, err := types100.NewResultFromResult(res)
	if err != nil {
		return fmt.Errorf("cni add: read the result: %w", err)
	}
	for _, ip := range result.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			pod.Addresses = append(pod.Addresses, a.Unmap())
		}
	}
	return nil
}

// cniAdd calls the plugin's ADD until it is done or fails for good: a runtime
// tries again after "try again later", with a DEL between (CNI: a DEL follows
// even a failed ADD).
func (l *Lab) cniAdd(ctx context.Context, pod *cluster.Pod, containerID string) (types.Result, error) {
	conf, err := l.conflist(pod.Node)
	if err != nil {
		return nil, err
	}
	rt := l.runtimeConf(pod.Name, pod.UID, containerID)
	for end := time.Now().Add(cniRetry); ; pause(cniPause) {
		res, err := l.libcni().AddNetworkList(ctx, conf, rt)
		var answer *types.Error
		if err == nil || !errors.As(err, &answer) || answer.Code != types.ErrTryAgainLater || ctx.Err() != nil || time.Now().After(end) {
			return res, err
		}
		l.log.Info("pod is tried again", "pod", pod.Name.String(), "reason", err)
		if err := l.libcni().DelNetworkList(ctx, conf, rt); err != nil {
			return nil, err
		}
	}
}

// deletePod gives back everything of a pod; what is gone already is fine.
func (l *Lab) deletePod(ctx context.Context, n model.Name) error {
	var errs []error
	l.endContainers(n)
	data, err := os.ReadFile(l.podDir(n) + "/sandbox.json")
	var sb sandbox
	if err == nil && json.Unmarshal(data, &sb) == nil {
		ctx, cancel := context.WithTimeout(ctx, cniTimeout)
		defer cancel()
		conf, err := l.conflist(sb.Node)
		if err == nil {
			err = l.libcni().DelNetworkList(ctx, conf, l.runtimeConf(n, "", sb.ContainerID))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("cni del: %w", err))
		}
	}
	errs = append(errs,
		kernel.DeleteNamespace(l.netnsPath(podPart(n))),
		cluster.RemoveObject(l.clusterDir(), "Pod", n),
		os.RemoveAll(l.podDir(n)))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("delete pod %s: %w", n, err)
	}
	return nil
}

func (l *Lab) libcni() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir([]string{l.path("cni", "bin")}, l.path("cni", "cache"), &invoke.DefaultExec{RawExec: &invoke.RawExec{}})
}

func (l *Lab) conflist(node string) (*libcni.NetworkConfigList, error) {
	conf, err := libcni.ConfListFromFile(l.path("nodes", node, "cni", conflistName))
	if err != nil {
		return nil, fmt.Errorf("read the CNI configuration of %s: %w", node, err)
	}
	return conf, nil
}

func (l *Lab) runtimeConf(n model.Name, uid, containerID string) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{
		ContainerID: containerID,
		NetNS:       l.netnsPath(podPart(n)),
		IfName:      podInterface,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", n.Namespace},
			{"K8S_POD_NAME", n.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", containerID},
		},
	}
	if uid != "" {
		rt.Args = append(rt.Args, [2]string{"K8S_POD_UID", uid})
	}
	return rt
}

// hostIPs are the node's addresses of the cluster's families.
func (l *Lab) hostIPs(node string) []string {
	var out []string
	for i, n := range l.NodeNames() {
		if n != node {
			continue
		}
		for _, p := range l.plan.nodeAddresses(i) {
			if l.cfg.Families.has(p.Addr()) {
				out = append(out, p.Addr().String())
			}
		}
	}
	return out
}

// writePodFiles writes what a kubelet puts into the containers of a pod.
func (l *Lab) writePodFiles(pod *cluster.Pod) error {
	resolv, err := l.resolvConf(pod)
	if err != nil {
		return err
	}
	var hosts strings.Builder
	hosts.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, a := range pod.Addresses {
		fmt.Fprintf(&hosts, "%s\t%s\n", a, podHostname(pod))
	}
	files := map[string]string{"resolv.conf": resolv, "hosts": hosts.String(), "hostname": podHostname(pod) + "\n"}
	for name, text := range files {
		if err := os.WriteFile(l.podDir(pod.Name)+"/"+name, []byte(text), 0o644); err != nil { //nolint:gosec // containers of any user read it
			return fmt.Errorf("write its %s: %w", name, err)
		}
	}
	return nil
}

// resolvConf is the pod's /etc/resolv.conf as a kubelet writes it.
func (l *Lab) resolvConf(pod *cluster.Pod) (string, error) {
	policy := pod.DNSPolicy
	if pod.HostNetwork && policy == "ClusterFirst" {
		policy = "Default"
	}
	servers, searches, options := pod.Nameservers, pod.Searches, pod.DNSOptions
	switch policy {
	case "Default":
		data, err := os.ReadFile(l.path("nodes", pod.Node, "resolv.conf"))
		if err != nil {
			return "", fmt.Errorf("read the node's resolv.conf: %w", err)
		}
		return string(data), nil
	case "None":
	default:
		var vips []string
		for _, a := range l.plan.dnsAddresses() {
			vips = append(vips, a.String())
		}
		ns := pod.Name.Namespace
		servers = append(vips, servers...)
		searches = append([]string{ns + ".svc." + clusterDomain, "svc." + clusterDomain, clusterDomain}, searches...)
		options = append([]string{"ndots:5"}, options...)
	}
	var b strings.Builder
	if len(searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(searches, " "))
	}
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return b.String(), nil
}

func podHostname(pod *cluster.Pod) string {
	if pod.HostNetwork {
		return pod.Node
	}
	if pod.Hostname != "" {
		return pod.Hostname
	}
	return pod.Name.Name
}

func newContainerID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func newUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
