package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/model"
)

// containerSpec is what the container's first process needs to become it.
type containerSpec struct {
	Hostname string            `json:"hostname,omitempty"`
	Mounts   map[string]string `json:"mounts"` // file in the container -> file outside
	Dir      string            `json:"dir,omitempty"`
	Args     []string          `json:"args"`
	Env      []string          `json:"env"`
}

// ContainerCommand is the hidden subcommand of `netctl lab` that runs
// ContainerMain.
const ContainerCommand = "container-init"

// ContainerMain turns this process, which was started in namespaces of its own,
// into a container's: it puts the pod's files into place and executes the
// command. It returns only when that fails.
func ContainerMain(specJSON string) error {
	var spec containerSpec
	if err := json.Unmarshal([]byte(specJSON), &spec); err != nil {
		return fmt.Errorf("read the container's specification: %w", err)
	}
	// Nothing that is mounted here may show outside, but an agent must see the
	// namespaces of pods come and go at their paths.
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("receive mounts without sending any: %w", err)
	}
	for inside, outside := range spec.Mounts {
		target, err := filepath.EvalSymlinks(inside)
		if err != nil {
			return fmt.Errorf("mount %s: %w; this machine needs such a file for it", inside, err)
		}
		if err := syscall.Mount(outside, target, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s over %s: %w", outside, target, err)
		}
	}
	if spec.Hostname != "" {
		if err := syscall.Sethostname([]byte(spec.Hostname)); err != nil {
			return fmt.Errorf("set the hostname: %w", err)
		}
	}
	if spec.Dir != "" {
		if err := os.Chdir(spec.Dir); err != nil {
			return fmt.Errorf("enter the working directory: %w", err)
		}
	}
	path, err := lookPath(spec.Args[0], spec.Env)
	if err != nil {
		return err
	}
	return fmt.Errorf("execute %s: %w", path, syscall.Exec(path, spec.Args, spec.Env))
}

// lookPath finds a command in the PATH of the container's environment.
func lookPath(name string, env []string) (string, error) {
	for _, kv := range slices.Backward(env) {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			if err := os.Setenv("PATH", v); err != nil {
				return "", fmt.Errorf("set PATH: %w", err)
			}
			break
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("command %q: %w", name, err)
	}
	return path, nil
}

// command prepares a process of a pod: its namespaces, files and environment
// are the pod's, its standard streams are the caller's to set.
func (l *Lab) command(pod *cluster.Pod, args, env []string, dir string) (*exec.Cmd, error) {
	files := l.podDir(pod.Name)
	spec := containerSpec{
		Mounts: map[string]string{
			"/etc/resolv.conf": files + "/resolv.conf",
			"/etc/hosts":       files + "/hosts",
		},
		Hostname: podHostname(pod), Dir: dir, Args: args, Env: append(l.podEnv(pod), env...),
	}
	if pod.HostNetwork {
		delete(spec.Mounts, "/etc/hosts")
	}
	return l.containerCommand(spec)
}

// hostCommand is command for the nodes and the outside host.
func (l *Lab) hostCommand(host string, args []string) (*exec.Cmd, error) {
	spec := containerSpec{Hostname: host, Args: args, Env: l.baseEnv(), Mounts: map[string]string{}}
	if resolv := l.path("nodes", host, "resolv.conf"); exists(resolv) {
		spec.Mounts["/etc/resolv.conf"] = resolv
	}
	return l.containerCommand(spec)
}

func (l *Lab) containerCommand(spec containerSpec) (*exec.Cmd, error) {
	data, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("encode the container's specification: %w", err)
	}
	cmd := exec.Command(l.exe, "lab", ContainerCommand, string(data)) //nolint:noctx // containers outlive us
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS}
	cmd.Env = spec.Env
	return cmd, nil
}

// baseEnv is the environment of everything that runs in the lab: this program
// is on the PATH under its own name.
func (l *Lab) baseEnv() []string {
	env := []string{"PATH=" + l.path("bin") + ":" + os.Getenv("PATH")}
	for _, k := range []string{"HOME", "TERM", "LANG", "GOCOVERDIR", "GORACE"} {
		if v, ok := os.LookupEnv(k); ok {
			env = append(env, k+"="+v)
		}
	}
	return env
}

func (l *Lab) podEnv(pod *cluster.Pod) []string {
	var ips []string
	for _, a := range pod.Addresses {
		ips = append(ips, a.String())
	}
	return append(l.baseEnv(),
		"HOSTNAME="+podHostname(pod), "POD_NAME="+pod.Name.Name, "POD_NAMESPACE="+pod.Name.Namespace,
		"NODE_NAME="+pod.Node, "POD_IPS="+strings.Join(ips, ","))
}

// containerEnv resolves the container's variables, the downward API's included.
func containerEnv(pod *cluster.Pod, c *cluster.Container) ([]string, error) {
	var out []string
	for _, v := range c.Env {
		value := v.Value
		if v.Field != "" {
			field, ok := downward(pod, v.Field)
			if !ok {
				return nil, fmt.Errorf("container %s: variable %s: the lab does not know field %q", c.Name, v.Name, v.Field)
			}
			value = field
		}
		out = append(out, v.Name+"="+value)
	}
	return out, nil
}

func downward(pod *cluster.Pod, field string) (string, bool) {
	first := func(list []string) string {
		if len(list) == 0 {
			return ""
		}
		return list[0]
	}
	var ips []string
	for _, a := range pod.Addresses {
		ips = append(ips, a.String())
	}
	values := map[string]string{
		"metadata.name": pod.Name.Name, "metadata.namespace": pod.Name.Namespace, "metadata.uid": pod.UID,
		"spec.nodeName": pod.Node, "status.podIP": first(ips), "status.podIPs": strings.Join(ips, ","),
		"status.hostIP": first(pod.HostIPs), "status.hostIPs": strings.Join(pod.HostIPs, ","),
	}
	v, ok := values[field]
	return v, ok
}

// startContainer starts one container of a pod; its output goes to its log.
func (l *Lab) startContainer(pod *cluster.Pod, c *cluster.Container) error {
	args := append(slices.Clone(c.Command), c.Args...)
	if len(c.Command) == 0 {
		// The lab has no images. What people deploy first is a web server, and that
		// it can be.
		args = append([]string{"netctl", "lab", "serve"}, serveArgs(pod)...)
		l.log.Info("image is not run, the built-in server is", "pod", pod.Name.String(), "container", c.Name, "image", c.Image)
	}
	env, err := containerEnv(pod, c)
	if err != nil {
		return err
	}
	cmd, err := l.command(pod, args, env, c.WorkingDir)
	if err != nil {
		return err
	}
	logFile, err := os.OpenFile(l.logPath(pod.Name, c.Name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644) // logs are for everyone on the machine
	if err != nil {
		return fmt.Errorf("open the log of container %s: %w", c.Name, err)
	}
	defer logFile.Close()
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr.Setsid = true
	part := podPart(pod.Name)
	if pod.HostNetwork {
		part = pod.Node
	}
	if err := l.start(part, cmd); err != nil {
		return fmt.Errorf("start container %s: %w", c.Name, err)
	}
	go func() { _ = cmd.Wait() }() // reap it while we are here; later init does
	return l.rememberPID(pod.Name, cmd.Process.Pid)
}

// start starts a command in one of the lab's namespaces.
func (l *Lab) start(part string, cmd *exec.Cmd) error {
	ns, err := l.namespace(part)
	if err != nil {
		return err
	}
	defer ns.Close()
	return kernel.StartIn(ns, cmd)
}

// serveArgs has the built-in server listen on the pod's declared ports.
func serveArgs(pod *cluster.Pod) []string {
	var out []string
	for _, p := range pod.Ports {
		switch p.Protocol {
		case model.TCP:
			out = append(out, "--http=:"+strconv.Itoa(int(p.Port)))
		case model.UDP:
			out = append(out, "--udp=:"+strconv.Itoa(int(p.Port)))
		default: // SCTP has no server here
		}
	}
	if len(out) == 0 {
		out = append(out, "--http=:80")
	}
	return out
}

func (l *Lab) logPath(pod model.Name, container string) string {
	return l.podDir(pod) + "/" + container + ".log"
}

// rememberPID notes a process of a host-network pod or of any other, with its
// start time, so that nobody else's process is killed for it.
func (l *Lab) rememberPID(pod model.Name, pid int) error {
	f, err := os.OpenFile(l.podDir(pod)+"/pids", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("remember a process: %w", err)
	}
	_, err = fmt.Fprintln(f, pid, startTime(pid))
	return errors.Join(err, f.Close())
}

// endContainers ends the processes of a pod, as a kubelet does: they are asked
// to, and killed when they take too long. It returns when they are gone, while
// the pod still has its network: only so do their connections end in words, not
// in silence.
func (l *Lab) endContainers(n model.Name) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		for end := time.Now().Add(podGrace); l.signalContainers(n, sig) > 0 && time.Now().Before(end); {
			pause(killPoll)
		}
	}
}

// signalContainers sends sig to the processes of a pod and returns how many
// there were: all that are in its namespace, or for one on the host's network
// those that were started for it.
func (l *Lab) signalContainers(n model.Name, sig syscall.Signal) int {
	count := 0
	data, err := os.ReadFile(l.podDir(n) + "/pids")
	if err != nil {
		data = nil
	}
	for line := range strings.Lines(string(data)) {
		var pid int
		var started string
		if _, err := fmt.Sscan(line, &pid, &started); err != nil || startTime(pid) != started || ended(pid) {
			continue
		}
		count++
		_ = syscall.Kill(-pid, sig) // its session; may have ended
		_ = syscall.Kill(pid, sig)
	}
	for _, pid := range processesIn(l.netnsPath(podPart(n))) {
		count++
		_ = syscall.Kill(pid, sig)
	}
	return count
}

// startTime is field 22 of /proc/PID/stat (proc(5)), which with the PID names a
// process for as long as the machine runs.
func startTime(pid int) string {
	stat := processStat(pid)
	if stat == nil {
		return "gone"
	}
	return stat[19]
}

// processStat returns the fields of /proc/PID/stat from the third on, nil when
// there is no such process. The second is its name, which may contain anything.
func processStat(pid int) []string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	text := string(data)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 20 {
		return nil
	}
	return fields
}

// awaitPorts waits until the pod's TCP ports accept connections, so that "ready"
// means something. A container that never does is not the lab's business.
func (l *Lab) awaitPorts(ctx context.Context, pod *cluster.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	part := podPart(pod.Name)
	if pod.HostNetwork {
		part = pod.Node
	}
	ns, err := l.namespace(part)
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(func() error {
		for _, p := range pod.Ports {
			if p.Protocol != model.TCP {
				continue
			}
			awaitPort(ctx, pod, int(p.Port))
		}
		return nil
	})
}

func awaitPort(ctx context.Context, pod *cluster.Pod, port int) {
	for _, a := range pod.Addresses {
		for ctx.Err() == nil {
			// The socket is made in this thread and so in the pod's namespace.
			if tcpAccepts(net.JoinHostPort(a.String(), strconv.Itoa(port))) {
				break
			}
			pause(5 * time.Millisecond)
		}
	}
}

func tcpAccepts(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, time.Second) //nolint:noctx // bounded, and it must stay in this thread
	if err != nil {
		return false
	}
	return c.Close() == nil
}

// copyFile streams a file to w.
func copyFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	defer f.Close()
	if _, err := io.Copy(w, f); err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	return nil
}
