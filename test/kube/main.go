// Command kube brings up real Kubernetes clusters on this machine and works with
// them: kubeadm, kubelet, containerd and runc as in any cluster, built from
// source, on nodes that are namespaces. `make kube-up`, `make kube-demo` and
// `make e2e` are made of it.
//
//	kube up --nodes=3 --cni=netctl     # then it prints how to use the cluster
//	kube exec node1 -- ip route
//	kube node reboot node2
//	kube down
//
// A cluster has a name, and several stand side by side: everything of one is in
// namespaces and in a directory of its own, and nothing of it is in the network
// of this machine. So what talks to it runs inside, beside the nodes, on the
// host "outside": the printed kubectl enters there by itself.
//
// It needs root, Go and Debian's packages (.ci/setup-kube); no container engine,
// no registry, no systemd.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(os.Stdout).ExecuteContext(ctx)
	stop()
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit) && exit.ExitCode() > 0 && errors.Is(err, errPassed):
		os.Exit(exit.ExitCode())
	default:
		fmt.Fprintln(os.Stderr, "kube:", err)
		os.Exit(1)
	}
}
