package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/test/bench/rivals"
	"github.com/netctl/netctl/test/figures"
)

const (
	burst = 100 // pods added at the same moment
)

// runtime calls the plugin as a container runtime does, process start included,
// on namespaces of its own.
type runtime struct {
	plugin, config string
	namespaces     []string // paths
}

// cni measures the operations of the plugin against the agent of a lab node:
// one after the other in one lab, all at once in another one, because released
// addresses cool down.
func (b *bench) cni(ctx context.Context) error {
	for _, part := range []func(*bench, context.Context, *runtime) error{(*bench).addAndDelete, (*bench).addBurst} {
		if err := b.withRuntime(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

// withRuntime runs f with a runtime on a new lab.
func (b *bench) withRuntime(ctx context.Context, f func(*bench, context.Context, *runtime) error) (err error) {
	l, err := b.up(ctx, b.netctl, podsOf{name: "bench-cni", nodes: 1}, "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.down()) }()
	r := &runtime{
		plugin: l.path("cni", "bin", "netctl-cni"),
		config: fmt.Sprintf(`{"cniVersion":"1.1.0","name":"netctl","type":"netctl-cni","socket":%q}`, l.path("nodes", "node1", "run", "cni.sock")),
	}
	defer func() { err = errors.Join(err, r.close()) }()
	for i := range burst {
		path := filepath.Join(kernel.RuntimeDir, fmt.Sprintf("%scni-%d", rivals.Prefix, i))
		ns, err := kernel.CreateNamespace(path)
		if err != nil {
			return err
		}
		r.namespaces = append(r.namespaces, path)
		if err := ns.Close(); err != nil {
			return err
		}
	}
	return f(b, ctx, r)
}

// addAndDelete measures what the plugin costs by itself, then ADD and DEL of
// one pod after the other.
func (b *bench) addAndDelete(ctx context.Context, r *runtime) error {
	n := pick(b, 30, burst)
	for _, op := range []string{"VERSION", "STATUS"} {
		took, err := r.repeat(ctx, n, func(int) error { return r.call(ctx, op, 0) })
		if err != nil {
			return err
		}
		b.times("cni-"+strings.ToLower(op), took)
	}
	for _, op := range []string{"ADD", "DEL"} {
		took, err := r.repeat(ctx, n, func(i int) error { return r.call(ctx, op, i) })
		if err != nil {
			return err
		}
		b.times("cni-"+strings.ToLower(op), took)
	}
	return nil
}

// addBurst measures how long a hundred pods take that start and end together.
func (b *bench) addBurst(ctx context.Context, r *runtime) error {
	for _, op := range []string{"ADD", "DEL"} {
		g, gctx := errgroup.WithContext(ctx)
		took := make([]time.Duration, burst)
		start := time.Now()
		for i := range burst {
			g.Go(func() error {
				begin := time.Now()
				err := r.call(gctx, op, i)
				took[i] = time.Since(begin)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		name := fmt.Sprintf("cni-%s-%d-at-once", strings.ToLower(op), burst)
		b.figure(name, figures.MS(time.Since(start)), "ms")
		b.figure(name+"-p99", figures.MS(figures.Quantile(took, 0.99)), "ms")
	}
	return nil
}

func (r *runtime) repeat(ctx context.Context, n int, f func(i int) error) ([]time.Duration, error) {
	took := make([]time.Duration, 0, n)
	for i := range n {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		start := time.Now()
		if err := f(i); err != nil {
			return nil, err
		}
		took = append(took, time.Since(start))
	}
	return took, nil
}

// call runs the plugin for the pod in the i-th namespace.
func (r *runtime) call(ctx context.Context, op string, i int) error {
	cmd := exec.CommandContext(ctx, r.plugin)
	cmd.Env = []string{
		"CNI_COMMAND=" + op, "CNI_PATH=" + filepath.Dir(r.plugin), "CNI_IFNAME=eth0",
		"CNI_CONTAINERID=" + filepath.Base(r.namespaces[i]), "CNI_NETNS=" + r.namespaces[i],
		fmt.Sprintf("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=bench-%d;K8S_POD_UID=uid-%d", i, i),
	}
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(r.config), &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("plugin %s of pod %d: %w: %s", op, i, err, strings.TrimSpace(out.String()))
	}
	return nil
}

// close deletes the namespaces.
func (r *runtime) close() error {
	var errs []error
	for _, path := range r.namespaces {
		errs = append(errs, kernel.DeleteNamespace(path))
	}
	return errors.Join(errs...)
}
