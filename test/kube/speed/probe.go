package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/netctl/netctl/internal/kernel"
)

// probe is a pod that asks a Service of one endpoint who answers, and the two pods
// that the endpoint can be. All are on one node.
type probe struct {
	inside  *kernel.Namespace // the asking pod's network
	service netip.AddrPort
	addrs   [2]string
}

const (
	probePort = 8081
	patience  = time.Second // for an answer
)

var backends = [2]string{"back-a", "back-b"} //nolint:gochecknoglobals // constant

func (c *cluster) newProbe(ctx context.Context) (*probe, error) {
	for name, args := range map[string][]string{
		"ask": {"pause"}, backends[0]: {"netexec", "--udp-port=8081"}, backends[1]: {"netexec", "--udp-port=8081"},
	} {
		if err := c.create(ctx, podsPath, newPod(name, "node1", args...)); err != nil {
			return nil, err
		}
	}
	p := &probe{}
	for i, name := range backends {
		found, err := c.running(ctx, name)
		if err != nil {
			return nil, err
		}
		p.addrs[i] = found.Status.PodIP
	}
	ask, err := c.running(ctx, "ask")
	if err != nil {
		return nil, err
	}
	if err := c.create(ctx, servicesPath, newService("flip", "UDP", 7)); err != nil {
		return nil, err
	}
	if err := c.create(ctx, slicesPath, newSlice("flip", "UDP", probePort, 0, p.addrs[0])); err != nil {
		return nil, err
	}
	var service struct{ Spec struct{ ClusterIP string } }
	if err := c.get(ctx, servicesPath+"/flip", &service); err != nil {
		return nil, err
	}
	addr, err := netip.ParseAddr(service.Spec.ClusterIP)
	if err != nil {
		return nil, err
	}
	p.service = netip.AddrPortFrom(addr, 7)
	p.inside, err = c.enter(ctx, ask.Status.PodIP)
	return p, err
}

func (p *probe) close() error { return p.inside.Close() }

// running waits until a pod runs.
func (c *cluster) running(ctx context.Context, name string) (pod, error) {
	var p pod
	err := await(ctx, 2*time.Minute, func() error {
		if err := c.get(ctx, podsPath+"/"+name, &p); err != nil {
			return err
		}
		if p.Status.Phase != "Running" {
			return fmt.Errorf("pod %s is %s", name, p.Status.Phase)
		}
		return nil
	})
	return p, err
}

// enter finds the namespace of node1 in which an interface has the address.
func (c *cluster) enter(ctx context.Context, address string) (*kernel.Namespace, error) {
	root, err := c.rootOf(ctx, "node1")
	if err != nil {
		return nil, err
	}
	paths, err := filepath.Glob(filepath.Join(root, "run/netns/*"))
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		ns, err := kernel.OpenNamespace(path)
		if err != nil {
			continue // gone, or none
		}
		found := false
		if err := ns.Do(func() error {
			all, err := net.InterfaceAddrs()
			for _, a := range all {
				if n, ok := a.(*net.IPNet); ok && n.IP.String() == address {
					found = true
				}
			}
			return err
		}); err == nil && found {
			return ns, nil
		}
		_ = ns.Close() // another pod's
	}
	return nil, fmt.Errorf("no namespace of %s has %s", root, address)
}

// ask sends the service a question, from a port of its own, so that no flow of
// before says where to, and has the name in the answer sent to answers.
func (p *probe) ask(answers chan<- string) error {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(p.service))
	if err != nil {
		return err
	}
	if _, err := conn.Write([]byte("hostname")); err != nil {
		return errors.Join(err, conn.Close())
	}
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return errors.Join(err, conn.Close())
	}
	go func() {
		defer conn.Close()
		buf := make([]byte, 64)
		n, err := conn.Read(buf)
		if err != nil {
			return // lost, as answers are of a backend that has just gone; others follow
		}
		select {
		case answers <- string(buf[:n]):
		default: // nobody waits any more
		}
	}()
	return nil
}

// flip is one change of the endpoint, as seen from outside the agent.
type flip struct {
	done time.Time
	err  error
}

// flips moves the service's endpoint between the two pods, and sees when the
// asking pod reaches the new one.
func (c *cluster) flips(ctx context.Context, p *probe, n int) error {
	events, err := watch[struct {
		Endpoints []struct{ Addresses []string }
	}](ctx, c, slicesPath+"?watch=1&fieldSelector=metadata.name%3Dflip-abcde")
	if err != nil {
		return err
	}
	var sincePatch, sinceEvent []time.Duration
	for i := range n {
		want := (i + 1) % 2
		reached := make(chan flip, 1)
		go func() { reached <- p.await(ctx, backends[want]) }()
		start := time.Now()
		if err := c.patch(ctx, slicesPath+"/flip-abcde", []object{
			{"op": "replace", "path": "/endpoints/0/addresses/0", "value": p.addrs[want]},
		}); err != nil {
			return err
		}
		f := <-reached
		if f.err != nil {
			return f.err
		}
		seen := time.Time{}
		for e := range events {
			if len(e.Object.Endpoints) == 1 && e.Object.Endpoints[0].Addresses[0] == p.addrs[want] {
				seen = e.at
				break
			}
		}
		if seen.IsZero() {
			return errors.New("the watch ended")
		}
		sincePatch, sinceEvent = append(sincePatch, f.done.Sub(start)), append(sinceEvent, max(0, f.done.Sub(seen)))
		wait(ctx, 100*time.Millisecond)
	}
	c.times("kube-change-patch-to-packet", sincePatch)
	c.times("kube-change-event-to-packet", sinceEvent)
	return nil
}

// await asks every millisecond until the pod of that name answers.
func (p *probe) await(ctx context.Context, name string) (f flip) {
	answers := make(chan string, 1<<10)
	deadline := time.After(10 * time.Second)
	f.err = p.inside.Do(func() error {
		for {
			if err := p.ask(answers); err != nil {
				return err
			}
			next := time.After(time.Millisecond)
			for asked := true; asked; {
				select {
				case got := <-answers:
					if got == name {
						f.done = time.Now()
						return nil
					}
				case <-next:
					asked = false
				case <-deadline:
					return fmt.Errorf("%s did not answer at %s within 10 s", name, p.service)
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
		}
	})
	return f
}

// lines yields the lines of a text.
func lines(r io.Reader) iter.Seq[string] {
	return func(yield func(string) bool) {
		s := bufio.NewScanner(r)
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			if !yield(s.Text()) {
				return
			}
		}
	}
}
