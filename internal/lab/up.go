package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/model"
)

const (
	clusterDomain = "cluster.local"
	// agentWait is how long an agent may take to serve.
	agentWait = 20 * time.Second
	agentPoll = 20 * time.Millisecond

	conflistName = cni.DefaultConfName
)

// Up builds the lab and returns when every agent serves. A lab of the same name
// that is there already is an error; what a crashed one left is removed first.
// When Up fails it leaves nothing.
func (l *Lab) Up(ctx context.Context) (err error) {
	if l.running() {
		return fmt.Errorf("lab %q is up already; use it, or remove it with 'netctl lab down --name %s'", l.cfg.Name, l.cfg.Name)
	}
	for _, need := range []error{kernel.HaveNamespaces(), kernel.HaveTUN()} {
		if need != nil {
			return need
		}
	}
	if err := l.destroy(); err != nil {
		return fmt.Errorf("clean up after an earlier lab %q: %w", l.cfg.Name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.destroy())
		}
	}()
	for _, d := range []string{"cluster", "pods", "bin", "cni/bin"} {
		if err := os.MkdirAll(l.path(d), 0o755); err != nil {
			return fmt.Errorf("create the lab's directory: %w", err)
		}
	}
	if err := os.Symlink(l.exe, l.path("bin", "netctl")); err != nil {
		return fmt.Errorf("put this program on the lab's PATH: %w", err)
	}
	if err := l.underlayUp(); err != nil {
		return err
	}
	if err := l.writeCluster(); err != nil {
		return err
	}
	if err := l.startOutside(); err != nil {
		return err
	}
	for _, node := range l.NodeNames() {
		if err := l.installNode(node); err != nil {
			return fmt.Errorf("%s: %w", node, err)
		}
		if err := l.StartAgent(node); err != nil {
			return fmt.Errorf("%s: %w", node, err)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, node := range l.NodeNames() {
		g.Go(func() error { return l.AwaitAgent(gctx, node) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return l.save() // from here on the lab is up
}

// Down ends the lab and everything in it. A lab that is not there is down.
func (l *Lab) Down() error { return l.destroy() }

// running reports whether a lab of this name was brought up and anything in it
// still runs. One agent that died does not make it a ruin.
func (l *Lab) running() bool {
	if !exists(l.path("lab.json")) {
		return false
	}
	names, err := l.namespaces()
	return err != nil || slices.ContainsFunc(names, func(n string) bool { return len(processesIn(filepath.Join(netnsDir, n))) > 0 })
}

// writeCluster writes the objects that a cluster has from its first moment.
func (l *Lab) writeCluster() error {
	var errs []error
	for _, ns := range []string{"default", "kube-system"} {
		errs = append(errs, l.write(cluster.NamespaceObject(&model.Namespace{
			Name: ns, Labels: map[string]string{"kubernetes.io/metadata.name": ns},
		})))
	}
	for i, name := range l.NodeNames() {
		n := &model.Node{Name: name}
		for _, p := range l.plan.nodeAddresses(i) {
			if l.cfg.Families.has(p.Addr()) {
				n.Addresses = append(n.Addresses, p.Addr())
			}
		}
		if !l.cfg.ClaimBlocks {
			n.PodCIDRs = l.plan.nodeBlocks[i]
		}
		errs = append(errs, l.write(cluster.NodeObject(n)))
	}
	errs = append(errs, l.write(cluster.ServiceCIDRObject("kubernetes", l.plan.serviceCIDRs)))
	errs = append(errs, l.write(cluster.ServiceObject(&cluster.Service{Service: model.Service{
		Name: model.Name{Namespace: "kube-system", Name: "kube-dns"}, Type: model.ClusterIP,
		ClusterIPs: l.plan.dnsAddresses(),
		Ports: []model.ServicePort{
			{Name: "dns", Protocol: model.UDP, Port: 53},
			{Name: "dns-tcp", Protocol: model.TCP, Port: 53},
		},
	}})))
	return errors.Join(errs...)
}

// dnsAddresses are the virtual addresses of cluster DNS: the tenth of each
// service range, as kubeadm has it.
func (p plan) dnsAddresses() []netip.Addr {
	var out []netip.Addr
	for _, s := range p.serviceCIDRs {
		a := s.Masked().Addr()
		for range 10 {
			a = a.Next()
		}
		out = append(out, a)
	}
	return out
}

// startOutside runs a server with a few protocols, and a name server, on the
// host beyond the nodes.
func (l *Lab) startOutside() error {
	var answers []string
	for _, a := range l.plan.outside {
		answers = append(answers, "--dns-answer=outside.example="+a.String())
	}
	args := append([]string{"netctl", "lab", "serve", "--http=:80", "--tcp=:7", "--udp=:7", "--dns=:53"}, answers...)
	cmd, err := l.hostCommand(outsideNS, args)
	if err != nil {
		return err
	}
	return l.startLogged(outsideNS, cmd, l.path("outside.log"))
}

func (l *Lab) startLogged(part string, cmd *exec.Cmd, path string) error {
	logFile, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", part, err)
	}
	defer logFile.Close()
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr.Setsid = true
	if err := l.start(part, cmd); err != nil {
		return fmt.Errorf("start %s: %w", part, err)
	}
	go func() { _ = cmd.Wait() }() // reap it while we are here; later init does
	return nil
}

// installNode writes what a node has on its disk: CNI plugin and configuration
// and the resolv.conf of its network.
func (l *Lab) installNode(node string) error {
	if err := os.MkdirAll(l.path("nodes", node, "cni"), 0o755); err != nil {
		return fmt.Errorf("create the node's directory: %w", err)
	}
	var resolv strings.Builder
	for _, a := range l.plan.outside {
		if l.cfg.Families.has(a) {
			fmt.Fprintf(&resolv, "nameserver %s\n", a)
		}
	}
	if err := os.WriteFile(l.path("nodes", node, "resolv.conf"), []byte(resolv.String()), 0o644); err != nil { //nolint:gosec // every process of the node reads it
		return fmt.Errorf("write the node's resolv.conf: %w", err)
	}
	_, err := cni.Install(cni.Installation{
		BinDir: l.path("cni", "bin"), ConfDir: l.path("nodes", node, "cni"), ConfName: conflistName,
		Conflist: cni.Conflist{Socket: l.socket(node)}, Binary: l.cni,
	})
	if err != nil {
		return fmt.Errorf("install the CNI plugin: %w", err)
	}
	return nil
}

// stateDir is where a node's agent keeps its state and its socket.
func (l *Lab) stateDir(node string) string { return l.path("nodes", node, "run") }

func (l *Lab) socket(node string) string { return l.stateDir(node) + "/cni.sock" }

// StartAgent starts a node's agent process under a holder, which starts another one
// when it dies.
func (l *Lab) StartAgent(node string) error { return l.startAgent(node, programName) }

// StartVersion is StartAgent of another program than the lab's own.
func (l *Lab) StartVersion(node, program string) error { return l.startAgent(node, program) }

// programName is the lab's own program, as it is found in the lab.
const programName = "netctl"

// startAgent starts one of a program with more flags.
func (l *Lab) startAgent(node, program string, flags ...string) error {
	// Two of them stand side by side during an upgrade.
	holder := filepath.Join(l.stateDir(node), "holders", strconv.FormatInt(time.Now().UnixNano(), 36)+".sock")
	args := append([]string{program, "hold", "--now", "--socket=" + holder, "--"}, l.agentCommand(node, program)...)
	cmd, err := l.hostCommand(node, append(args, flags...))
	if err != nil {
		return err
	}
	return l.startLogged(node, cmd, l.path("nodes", node, "agent.log"))
}

// agentCommand is how a node's agent is started.
func (l *Lab) agentCommand(node, program string) []string {
	args := []string{
		program, "agent", "--node=" + node, "--cluster-dir=" + l.clusterDir(), "--state-dir=" + l.stateDir(node), "--data-dir=" + l.stateDir(node),
		"--resolv-conf=" + l.path("nodes", node, "resolv.conf"), "--log-level=debug",
	}
	if l.cfg.Egress != "" {
		args = append(args, "--egress="+string(l.cfg.Egress))
	}
	for _, p := range l.plan.podCIDRs {
		args = append(args, "--cluster-cidrs="+p.String())
	}
	return args
}

// AwaitAgent returns when a node's agent answers STATUS through the plugin.
func (l *Lab) AwaitAgent(ctx context.Context, node string) error {
	parent := ctx
	ctx, cancel := context.WithTimeout(ctx, agentWait)
	defer cancel()
	conf, err := l.conflist(node)
	if err != nil {
		return err
	}
	for {
		err := fmt.Errorf("%s: %w", l.socket(node), fs.ErrNotExist)
		if exists(l.socket(node)) {
			err = l.libcni().GetStatusNetworkList(ctx, conf)
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if parent.Err() != nil {
				return fmt.Errorf("wait for the agent of %s: %w", node, context.Cause(parent))
			}
			return fmt.Errorf("agent of %s does not serve: %w; see 'netctl lab logs %s'", node, err, node)
		case <-time.After(agentPoll):
		}
	}
}

// AgentPID returns the process of a node's agent.
func (l *Lab) AgentPID(node string) (int, bool) {
	for _, pid := range processesIn(l.netnsPath(node)) {
		if isNetctl(pid, "agent") {
			return pid, true
		}
	}
	return 0, false
}

// KillAgent ends a node's agent the hard way, and its holder with it: there is none
// until StartAgent.
func (l *Lab) KillAgent(node string) error {
	pid, ok := l.AgentPID(node)
	if !ok {
		return fmt.Errorf("no agent runs on %s", node)
	}
	if holder := parentOf(pid); holder > 1 && isNetctl(holder, "hold") {
		if err := kill(holder); err != nil {
			return fmt.Errorf("kill the holder of %s: %w", node, err)
		}
	}
	if err := kill(pid); err != nil {
		return fmt.Errorf("kill the agent of %s: %w", node, err)
	}
	return nil
}

// CrashAgent ends a node's agent the hard way. Its holder starts another one.
func (l *Lab) CrashAgent(node string) error {
	pid, ok := l.AgentPID(node)
	if !ok {
		return fmt.Errorf("no agent runs on %s", node)
	}
	if err := kill(pid); err != nil {
		return fmt.Errorf("kill the agent of %s: %w", node, err)
	}
	return nil
}

// kill returns when the process has ended.
func kill(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	for !ended(pid) {
		pause(time.Millisecond)
	}
	return nil
}

// isNetctl reports whether a process runs that command of netctl.
func isNetctl(pid int, command string) bool {
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.HasPrefix(string(cmdline), "netctl\x00"+command+"\x00")
}

// parentOf returns the parent of a process, 0 when it has ended.
func parentOf(pid int) int {
	stat := processStat(pid)
	if len(stat) < 2 {
		return 0
	}
	parent, err := strconv.Atoi(stat[1])
	if err != nil {
		return 0
	}
	return parent
}

// ended reports whether all of a process has ended, reaped or not: its main
// thread may be a zombie while others still hold its files and their locks.
func ended(pid int) bool {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return err != nil || len(threads) == 0 || len(threads) == 1 && zombie(pid)
}

func zombie(pid int) bool {
	stat := processStat(pid)
	return stat == nil || stat[0] == "Z"
}
