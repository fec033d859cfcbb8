package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/netctl/netctl/test/kube/oci"
)

// The host outside stands for everything that is not the cluster: the nodes' DNS
// server, a web server (agnhost netexec: HTTP on 80, UDP on 7), and the registry
// that every image name leads to. Users' commands run there too.
const (
	registryPort = "5000"
	outsideZone  = "outside.example."
)

// outsideCommand returns a command of this machine that runs in the network of
// outside, with what kubectl needs.
func (c *Cluster) outsideCommand(ctx context.Context, args ...string) *exec.Cmd {
	// Not nsenter's own search: the cluster's kubectl comes first.
	args = append([]string{"--net=/run/netns/" + c.netns(outsideName), "--", "env", "PATH=" + c.cache.Bin() + ":" + os.Getenv("PATH")}, args...)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.path("kubeconfig"))
	return cmd
}

// outsideUp starts the servers.
func (c *Cluster) outsideUp(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	program := c.path("kube") // of our own: `go run` removes its
	if err := copyFile(self, program); err != nil {
		return err
	}
	script := fmt.Sprintf("#!/bin/sh\nexec nsenter --net=/run/netns/%s -- %s --kubeconfig=%s \"$@\"\n",
		c.netns(outsideName), filepath.Join(c.cache.Bin(), "kubectl"), c.path("kubeconfig"))
	if err := os.WriteFile(c.path("kubectl"), []byte(script), 0o755); err != nil { //nolint:gosec // a program
		return err
	}
	for name, args := range map[string][]string{
		"outside": {program, "serve", "--images=" + c.path("images")},
		"netexec": {filepath.Join(c.cache.Bin(), "agnhost"), "netexec", "--http-port=80", "--udp-port=7"},
	} {
		if err := c.startOutside(name, args); err != nil {
			return err
		}
	}
	return c.await(ctx, "the servers of outside", 20*time.Second, func() error {
		for _, url := range []string{"http://127.0.0.1:80/hostname", "http://127.0.0.1:" + registryPort + "/v2/"} {
			if out, err := c.outsideCommand(ctx, "curl", "-sfS", "-m2", url).CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
		}
		return nil
	})
}

func (c *Cluster) startOutside(name string, args []string) error {
	log, err := os.Create(c.path(name + ".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := c.outsideCommand(context.Background(), args...) // it outlives us
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	go func() { _ = cmd.Wait() }() // reap it while we are here; later init does
	return nil
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755) //nolint:gosec // a program
}

// await tries until it works.
func (c *Cluster) await(ctx context.Context, what string, limit time.Duration, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not after %s: %w", what, limit, err)
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// serveCommand is what runs on outside beside agnhost.
func serveCommand() *cobra.Command {
	images := ""
	c := &cobra.Command{
		Use: "serve", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), images, cmd.OutOrStdout()) },
	}
	c.Flags().StringVar(&images, "images", "", "the layout that the registry serves")
	return c
}

func serve(ctx context.Context, images string, out io.Writer) error {
	handler, err := oci.Handler(images)
	if err != nil {
		return err
	}
	registry := &http.Server{Addr: ":" + registryPort, Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	answer := dns.HandlerFunc(answerOutside)
	servers := []*dns.Server{
		{Addr: ":53", Net: "udp", Handler: answer},
		{Addr: ":53", Net: "tcp", Handler: answer},
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(registry.ListenAndServe)
	for _, s := range servers {
		g.Go(s.ListenAndServe)
	}
	_, _ = fmt.Fprintf(out, "registry on %s, dns on :53\n", registry.Addr)
	g.Go(func() error {
		<-ctx.Done()
		errs := []error{registry.Close()}
		for _, s := range servers {
			errs = append(errs, s.Shutdown())
		}
		return errors.Join(errs...)
	})
	return g.Wait()
}

// answerOutside knows outside.example and what is below it; all the rest does
// not exist, and that is an answer too.
func answerOutside(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg).SetReply(q)
	m.Authoritative = true
	if len(q.Question) == 1 {
		name := strings.ToLower(q.Question[0].Name)
		switch {
		case name != outsideZone && !strings.HasSuffix(name, "."+outsideZone):
			m.Rcode = dns.RcodeNameError
		case q.Question[0].Qtype == dns.TypeA:
			m.Answer = append(m.Answer, &dns.A{
				Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 30},
				A:   netip.MustParseAddr(outsideAddress).AsSlice(),
			})
		}
	}
	_ = w.WriteMsg(m) // the client asks again
}
