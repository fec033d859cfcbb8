package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The networks that a cluster's pods can have.
const (
	cniNetctl = "netctl" // the product, installed as its users do
	cniPTP    = "ptp"    // the reference: veth pairs, host-local, static routes
	cniNone   = "none"   // nodes stay NotReady until somebody installs one

	ptpSubnet = "10.244.0.0/16"
)

// network installs the pods' network where it is missing and waits until all
// nodes are Ready.
func (c *Cluster) network(ctx context.Context) error {
	switch c.options.CNI {
	case cniNone:
		return nil
	case cniPTP:
		if err := c.installPTP(ctx); err != nil {
			return err
		}
	case cniNetctl:
		if err := c.installNetctl(ctx); err != nil {
			return err
		}
	}
	return c.awaitReady(ctx)
}

func (c *Cluster) awaitReady(ctx context.Context) error {
	if _, err := c.kubectl(ctx, "wait", "node", "--all", "--for=condition=Ready", "--timeout=120s", "--request-timeout=0"); err != nil {
		state, _ := c.kubectl(ctx, "get", "nodes,pods", "-A", "-o", "wide") // best effort: for the message
		return fmt.Errorf("not every node is Ready: %w\n%s", err, state)
	}
	return nil
}

// installNetctl does what deploy/README.md tells users to do.
func (c *Cluster) installNetctl(ctx context.Context) error {
	archive := filepath.Join(c.repo, "dist", "netctl-image.tar")
	if _, err := os.Stat(archive); err != nil {
		return fmt.Errorf("%w: run 'make image'", err)
	}
	if err := c.importImage(ctx, archive); err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(c.repo, "deploy", "netctl.yaml"))
	if err != nil {
		return err
	}
	// The specs try all that Services can say.
	text = bytes.ReplaceAll(text, []byte("allowExternalIPs: false"), []byte("allowExternalIPs: true"))
	text = bytes.ReplaceAll(text, []byte("loadBalancerPools: []"), []byte(`loadBalancerPools: ["192.0.2.200-192.0.2.230", "2001:db8::c8-2001:db8::e6"]`))
	path := filepath.Join(c.dir, "netctl.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return err
	}
	_, err = c.kubectl(ctx, "apply", "-f", path)
	return err
}

// installPTP writes the conflist with each node's range, and routes between them.
func (c *Cluster) installPTP(ctx context.Context) error {
	ranges, err := c.podRanges(ctx)
	if err != nil {
		return err
	}
	data, err := json.Marshal(ranges)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.path("ranges.json"), data, 0o600); err != nil {
		return err
	}
	for node, subnet := range ranges {
		m := c.machine(node)
		for _, p := range []string{"loopback", "ptp", "host-local", "portmap"} {
			if err := copyFile(filepath.Join(c.cache.Bin(), p), m.Path("/opt/cni/bin/"+p)); err != nil {
				return err
			}
		}
		conflist := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"ptp","plugins":[
  {"type":"ptp","mtu":1500,"ipam":{"type":"host-local","dataDir":"/run/cni-ipam-state","routes":[{"dst":"0.0.0.0/0"}],"ranges":[[{"subnet":%q}]]}},
  {"type":"portmap","capabilities":{"portMappings":true}}]}`, subnet)
		if err := m.Write("/etc/cni/net.d/10-ptp.conflist", conflist, 0o644); err != nil {
			return err
		}
	}
	return c.routes()
}

// routes leads every node, and the fabric, to the pods of each node. Only the
// reference needs it.
func (c *Cluster) routes() error {
	if c.options.CNI != cniPTP {
		return nil
	}
	data, err := os.ReadFile(c.path("ranges.json"))
	if err != nil {
		return err
	}
	var ranges map[string]string
	if err := json.Unmarshal(data, &ranges); err != nil {
		return err
	}
	var errs []error
	for _, at := range append(c.nodeNames(), fabricName) {
		for node, subnet := range ranges {
			if _, up := c.machine(at).PID(); at != node && (up || at == fabricName) {
				errs = append(errs, ip("-n", c.netns(at), "route", "replace", subnet, "via", nodeAddress(node).String()))
			}
		}
	}
	return errors.Join(errs...)
}

// podRanges returns the range that the controller gave each node.
func (c *Cluster) podRanges(ctx context.Context) (map[string]string, error) {
	ranges := map[string]string{}
	err := c.await(ctx, "a pod range for every node", time.Minute, func() error {
		out, err := c.kubectl(ctx, "get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name}={.spec.podCIDR}{"\n"}{end}`)
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			node, subnet, _ := strings.Cut(strings.TrimSpace(line), "=")
			ranges[node] = subnet
		}
		for _, node := range c.nodeNames() { // a node that just joined may not even be listed
			if ranges[node] == "" {
				return fmt.Errorf("%s has none", node)
			}
		}
		return nil
	})
	return ranges, err
}
