package cni

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/netctl/netctl/cni/wire"
	"github.com/netctl/netctl/internal/model"
)

// Bounds of what a runtime may ask for.
const (
	maxPortMappings = 1024
	maxAddresses    = 16
	maxNameLen      = 253 // of a Kubernetes object (RFC 1123 subdomain)
)

// networkConfig is the configuration on stdin. Unknown keys are ignored, as
// the specification demands.
type networkConfig struct {
	CNIVersion    string        `json:"cniVersion"`
	Name          string        `json:"name"`
	RuntimeConfig runtimeConfig `json:"runtimeConfig"`
	// PrevResult stays raw: DEL must not mind what is in it.
	PrevResult json.RawMessage `json:"prevResult"`
	// The specification named the list wrongly at first, and runtimes send
	// both. A null is an empty list; an absent key is not.
	ValidAttachments json.RawMessage `json:"cni.dev/valid-attachments"`
	Attachments      json.RawMessage `json:"cni.dev/attachments"`
}

// runtimeConfig is what the declared capabilities bring. Runtimes disagree
// about upper and lower case of the inner keys; encoding/json does not mind.
type runtimeConfig struct {
	PortMappings []struct {
		HostPort      int    `json:"hostPort"`
		ContainerPort int    `json:"containerPort"`
		Protocol      string `json:"protocol"`
		HostIP        string `json:"hostIP"`
	} `json:"portMappings"`
	Bandwidth   Bandwidth         `json:"bandwidth"`
	IPs         []string          `json:"ips"`
	Annotations map[string]string `json:"io.kubernetes.cri.pod-annotations"`
}

// parseConfig reads the configuration for one operation. DEL reads no more
// than it needs, so that a broken configuration cannot keep a pod.
func parseConfig(command string, raw []byte) (*networkConfig, *Error) {
	var c networkConfig
	var err error
	if command == wire.Del {
		var head struct {
			CNIVersion string `json:"cniVersion"`
			Name       string `json:"name"`
		}
		err = json.Unmarshal(raw, &head)
		c.CNIVersion, c.Name = head.CNIVersion, head.Name
	} else {
		err = json.Unmarshal(raw, &c)
	}
	if err != nil {
		return nil, wire.Errorf(wire.CodeDecode, "the network configuration cannot be decoded: %v", err)
	}
	if err := checkVersion(command, c.CNIVersion); err != nil {
		return nil, err
	}
	if !wire.ValidContainerID(c.Name) { // the specification's rule is the same
		return nil, &Error{CNIVersion: c.CNIVersion, Code: wire.CodeConfig, Msg: fmt.Sprintf("the network's name %.80q is missing or invalid", c.Name)}
	}
	return &c, nil
}

// since is the specification version that brought each operation.
func since(command string) string {
	switch command {
	case wire.Check:
		return "0.4.0"
	case wire.GC, wire.Status:
		return "1.1.0"
	default:
		return "0.3.1"
	}
}

func checkVersion(command, version string) *Error {
	versions := wire.SpecVersions()
	at := slices.Index(versions, version)
	if at < 0 {
		if version == "" {
			version = "0.1.0 (none given)"
		}
		return wire.Errorf(wire.CodeIncompatible, "CNI version %.20s is not supported: set cniVersion to one of %s",
			version, strings.Join(versions, ", "))
	}
	if need := since(command); at < slices.Index(versions, need) {
		return &Error{CNIVersion: version, Code: wire.CodeIncompatible, Msg: fmt.Sprintf("%s needs CNI version %s, the network configuration is %s", command, need, version)}
	}
	return nil
}

// attachment builds the validated Attachment of an ADD or CHECK.
func (c *networkConfig) attachment(req *wire.Request) (Attachment, *Error) {
	a := Attachment{
		ID:          ID{req.ContainerID, req.IfName},
		Network:     c.Name,
		NetnsPath:   req.Netns,
		Bandwidth:   c.RuntimeConfig.Bandwidth,
		Annotations: c.RuntimeConfig.Annotations,
	}
	if err := a.Bandwidth.validate(); err != nil {
		return a, wire.Errorf(wire.CodeConfig, "runtimeConfig.bandwidth: %v", err)
	}
	var err error
	if a.Pod, err = parseArgs(req.Args); err != nil {
		return a, wire.Errorf(wire.CodeEnvironment, "CNI_ARGS: %v", err)
	}
	if a.Addresses, err = c.RuntimeConfig.addresses(); err != nil {
		return a, wire.Errorf(wire.CodeConfig, "runtimeConfig.ips: %v", err)
	}
	if a.PortMappings, err = c.RuntimeConfig.portMappings(); err != nil {
		return a, wire.Errorf(wire.CodeConfig, "runtimeConfig.portMappings: %v", err)
	}
	return a, nil
}

// The bounds of a rate are Kubernetes' for a pod's annotations.
const (
	minRate = 1_000                 // 1 kbit/s
	maxRate = 1_000_000_000_000_000 // 1 Pbit/s
)

// validate refuses what the reference plugin refuses, a rate without a burst and a
// burst without a rate, and rates that nobody means.
func (b Bandwidth) validate() error {
	for _, d := range []struct {
		name        string
		rate, burst uint64
	}{{"ingress", b.IngressRate, b.IngressBurst}, {"egress", b.EgressRate, b.EgressBurst}} {
		switch {
		case d.rate == 0 && d.burst == 0:
		case d.rate == 0 || d.burst == 0:
			return fmt.Errorf("%sRate %d with %sBurst %d: set both or none", d.name, d.rate, d.name, d.burst)
		case d.rate < minRate || d.rate > maxRate:
			return fmt.Errorf("%sRate %d: want bits per second, %d to %d", d.name, d.rate, minRate, maxRate)
		}
	}
	return nil
}

func (r *runtimeConfig) addresses() ([]netip.Addr, error) {
	if len(r.IPs) > maxAddresses {
		return nil, fmt.Errorf("%d addresses, at most %d", len(r.IPs), maxAddresses)
	}
	var out []netip.Addr
	for _, s := range r.IPs {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			p, perr := netip.ParsePrefix(s)
			if perr != nil {
				return nil, fmt.Errorf("%.60q is no address", s)
			}
			addr = p.Addr()
		}
		addr = addr.Unmap()
		if addr.Zone() != "" || addr.IsUnspecified() || addr.IsMulticast() || addr.IsLoopback() {
			return nil, fmt.Errorf("%s cannot be a pod's address", addr)
		}
		out = append(out, addr)
	}
	return out, nil
}

func (r *runtimeConfig) portMappings() ([]PortMapping, error) {
	if len(r.PortMappings) > maxPortMappings {
		return nil, fmt.Errorf("%d mappings, at most %d", len(r.PortMappings), maxPortMappings)
	}
	var out []PortMapping
	for _, m := range r.PortMappings {
		if m.HostPort == 0 {
			continue // no host port was asked for
		}
		if m.HostPort < 1 || m.HostPort > 65535 || m.ContainerPort < 1 || m.ContainerPort > 65535 {
			return nil, fmt.Errorf("host port %d to container port %d: want 1 to 65535", m.HostPort, m.ContainerPort)
		}
		p := PortMapping{HostPort: uint16(m.HostPort), ContainerPort: uint16(m.ContainerPort)}
		switch strings.ToLower(m.Protocol) {
		case "", "tcp":
			p.Protocol = model.TCP
		case "udp":
			p.Protocol = model.UDP
		case "sctp":
			p.Protocol = model.SCTP
		default:
			return nil, fmt.Errorf("protocol %.20q: want tcp, udp or sctp", m.Protocol)
		}
		if m.HostIP != "" {
			addr, err := netip.ParseAddr(m.HostIP)
			if err != nil {
				return nil, fmt.Errorf("host address %.60q: %w", m.HostIP, err)
			}
			if addr = addr.Unmap(); !addr.IsUnspecified() {
				p.HostIP = addr
			}
		}
		out = append(out, p)
	}
	return out, nil
}

// valid returns the attachments that GC must keep, those of both keys.
func (c *networkConfig) valid() ([]ID, *Error) {
	if c.ValidAttachments == nil && c.Attachments == nil {
		return nil, wire.Errorf(wire.CodeConfig, "GC names no list of valid attachments (cni.dev/valid-attachments): nothing was removed")
	}
	var out []ID
	for _, raw := range []json.RawMessage{c.ValidAttachments, c.Attachments} {
		if raw == nil {
			continue
		}
		var list []struct {
			ContainerID string `json:"containerID"`
			IfName      string `json:"ifname"`
		}
		if err := json.Unmarshal(raw, &list); err != nil {
			return nil, wire.Errorf(wire.CodeDecode, "GC's list of valid attachments cannot be decoded, nothing was removed: %v", err)
		}
		for _, e := range list {
			out = append(out, ID{e.ContainerID, e.IfName})
		}
	}
	return out, nil
}

// The characters of Kubernetes names and UIDs (RFC 1123, RFC 4122, and the
// hashes that static pods have as UIDs).
var (
	podName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)
	podUID  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)
)

// parseArgs reads CNI_ARGS, "KEY=VALUE;KEY=VALUE" in any order. Keys that we
// do not know are ignored, as IgnoreUnknown (which everybody sends) asks.
func parseArgs(args string) (Pod, error) {
	var p Pod
	for pair := range strings.SplitSeq(args, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			return Pod{}, fmt.Errorf("%.80q is not KEY=VALUE", pair)
		}
		form := podName
		var field *string
		switch key {
		case "K8S_POD_NAMESPACE":
			field = &p.Name.Namespace
		case "K8S_POD_NAME":
			field = &p.Name.Name
		case "K8S_POD_UID":
			field, form = &p.UID, podUID
		default:
			continue
		}
		if value == "" {
			continue
		}
		if len(value) > maxNameLen || !form.MatchString(value) {
			return Pod{}, fmt.Errorf("%s %.80q is no Kubernetes name", key, value)
		}
		if *field != "" && *field != value {
			return Pod{}, fmt.Errorf("%s is given twice", key)
		}
		*field = value
	}
	return p, nil
}
