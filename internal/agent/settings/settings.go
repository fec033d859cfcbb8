// Package settings is what an agent is told and what follows from it: the
// configuration file, and the values that are left open there, found from what
// the cluster and the node say.
//
//	file, flags ──Settings──┐
//	kubeadm, kubelet ───────┼─▶ PodRanges, Domain, NameServers, PodsOnly, ForeignDNS
//	State, host's routes ───┘
//
// Everything here is a pure function of values, but for reading the file; tables
// test it.
package settings

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"

	"sigs.k8s.io/yaml"
)

// Proxy says which of the cluster's service traffic is ours.
type Proxy string

// The kinds of service proxy.
const (
	ProxyAuto Proxy = "auto" // pods beside a kube-proxy on this node, else full
	ProxyFull Proxy = "full" // pods, node processes, node ports
	ProxyPods Proxy = "pods" // pods alone; the rest is kube-proxy's
)

// DNS says whether the agent answers at the cluster's name server address.
type DNS string

// The kinds of name service.
const (
	DNSAuto DNS = "auto" // off where the Service kube-dns has endpoints, else on
	DNSOn   DNS = "on"
	DNSOff  DNS = "off" // the address is a service like any other
)

// Egress says how what pods send to the outside leaves the node.
type Egress string

// The ways out.
const (
	EgressSockets Egress = "sockets" // of the agent
	EgressPackets Egress = "packets" // forwarded by the node's kernel, under the node's address
	EgressAuto    Egress = "auto"    // packets where the node can, else sockets
)

// Offload says whether the kernel is asked to do a part of the work.
type Offload string

// The positions of its switch.
const (
	OffloadAuto Offload = "auto" // if a test at the start shows that it can
	OffloadOn   Offload = "on"
	OffloadOff  Offload = "off"
)

// UnmarshalJSON reads the word.
func (d *DNS) UnmarshalJSON(data []byte) error { return word(data, (*string)(d)) }

// UnmarshalJSON reads the word.
func (o *Offload) UnmarshalJSON(data []byte) error { return word(data, (*string)(o)) }

// word reads one of which on and off are possible, which are truth values in plain
// YAML.
func word(data []byte, to *string) error {
	switch string(data) {
	case "true":
		*to = "on"
		return nil
	case "false":
		*to = "off"
		return nil
	}
	return json.Unmarshal(data, to)
}

// Settings are the keys of the configuration file. Each is also a flag, spelt
// with hyphens; a flag that is given counts more than the file.
type Settings struct {
	ClusterCIDRs  []string `json:"clusterCIDRs"`
	ClusterDomain string   `json:"clusterDomain"`
	APIServer     string   `json:"apiServer"`
	KubeletConf   string   `json:"kubeletConf"`
	WireguardPort uint16   `json:"wireguardPort"`
	MTU           int      `json:"mtu"`
	Workers       int      `json:"workers"`
	Proxy         Proxy    `json:"proxy"`
	DNS           DNS      `json:"dns"`
	DNSOptions    string   `json:"dnsOptions"`
	DNSMetrics    string   `json:"dnsMetrics"`
	Egress        Egress   `json:"egress"`
	UDPGSO        Offload  `json:"udpGSO"`
	UDPGRO        Offload  `json:"udpGRO"`
	TUNOffload    Offload  `json:"tunOffload"`
	// What of services is served, and where the proxy's health and counters are.
	NodePortAddresses  []string `json:"nodePortAddresses"`
	AllowExternalIPs   bool     `json:"allowExternalIPs"`
	LoadBalancerPools  []string `json:"loadBalancerPools"`
	HealthzBindAddress string   `json:"healthzBindAddress"`
	MetricsBindAddress string   `json:"metricsBindAddress"`

	CNIBinDir  string `json:"cniBinDir"`
	CNIConfDir string `json:"cniConfDir"`
	StateDir   string `json:"stateDir"`
	DataDir    string `json:"dataDir"`
	LogLevel   string `json:"logLevel"`
}

// Default returns the settings that hold where nothing is said.
func Default() Settings {
	return Settings{
		UDPGSO:             OffloadAuto,
		UDPGRO:             OffloadAuto,
		TUNOffload:         OffloadAuto,
		KubeletConf:        "/etc/kubernetes/kubelet.conf",
		WireguardPort:      51820,
		Proxy:              ProxyAuto,
		DNS:                DNSAuto,
		Egress:             EgressSockets,
		HealthzBindAddress: "0.0.0.0:10256",
		MetricsBindAddress: "127.0.0.1:10249",
		CNIBinDir:          "/opt/cni/bin",
		CNIConfDir:         "/etc/cni/net.d",
		StateDir:           "/run/netctl",
		DataDir:            "/var/lib/netctl",
		LogLevel:           "info",
	}
}

// Decode reads a configuration file's content over s. A key that it does not know
// is an error that names the key; s is then as it was.
func (s *Settings) Decode(data []byte) error {
	out := *s
	if err := yaml.UnmarshalStrict(data, &out); err != nil {
		return err
	}
	*s = out
	return nil
}

// ReadFile reads the configuration file at path over s.
func (s *Settings) ReadFile(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	if err := s.Decode(data); err != nil {
		return fmt.Errorf("configuration %s: %w", path, err)
	}
	return nil
}

// The bounds of a pod's MTU: what IPv6 needs (RFC 8200 §5), what a packet can be.
const (
	minMTU     = 1280
	maxMTU     = 65535
	maxWorkers = 256
	alivePort  = 51821 // alive.Port
)

// Validate reports everything that is wrong.
func (s *Settings) Validate() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if _, err := s.Ranges(); err != nil {
		errs = append(errs, err)
	}
	if s.WireguardPort == 0 {
		add("wireguardPort 0: choose a UDP port, such as %d", Default().WireguardPort)
	}
	if s.WireguardPort == alivePort {
		add("wireguardPort %d: agents ask each other there; choose another UDP port, such as %d", alivePort, Default().WireguardPort)
	}
	if s.MTU != 0 && (s.MTU < minMTU || s.MTU > maxMTU) {
		add("mtu %d: IPv6 needs at least %d, and %d is the most; 0 takes what the default route's link leaves", s.MTU, minMTU, maxMTU)
	}
	if s.Workers < 0 || s.Workers > maxWorkers {
		add("workers %d: want 1 to %d, or 0 for half the processors", s.Workers, maxWorkers)
	}
	switch s.Proxy {
	case ProxyAuto, ProxyFull, ProxyPods:
	default:
		add("proxy %q: want auto, full or pods", s.Proxy)
	}
	switch s.DNS {
	case DNSAuto, DNSOn, DNSOff:
	default:
		add("dns %q: want auto, on or off", s.DNS)
	}
	switch s.Egress {
	case EgressSockets, EgressPackets, EgressAuto:
	default:
		add("egress %q: want sockets, packets or auto", s.Egress)
	}
	for key, offload := range map[string]Offload{"udpGSO": s.UDPGSO, "udpGRO": s.UDPGRO, "tunOffload": s.TUNOffload} {
		switch offload {
		case OffloadAuto, OffloadOn, OffloadOff:
		default:
			add("%s %q: want auto, on or off", key, offload)
		}
	}
	for key, addr := range map[string]string{"healthzBindAddress": s.HealthzBindAddress, "metricsBindAddress": s.MetricsBindAddress} {
		if at, err := netip.ParseAddrPort(addr); addr != "" && (err != nil || at.Port() == 0) {
			add("%s %q: want an address and port such as 127.0.0.1:10249, or nothing to have none", key, addr)
		}
	}
	for key, dir := range map[string]string{
		"cniBinDir": s.CNIBinDir, "cniConfDir": s.CNIConfDir, "stateDir": s.StateDir, "dataDir": s.DataDir,
	} {
		if !filepath.IsAbs(dir) || filepath.Clean(dir) == "/" {
			add("%s %q: want an absolute path of a directory", key, dir)
		}
	}
	if err := new(slog.Level).UnmarshalText([]byte(s.LogLevel)); err != nil {
		add("logLevel %q: want debug, info, warn or error", s.LogLevel)
	}
	return errors.Join(errs...)
}

// Ranges returns the configured pod ranges, none when they are to be found.
func (s *Settings) Ranges() ([]netip.Prefix, error) {
	var out []netip.Prefix
	var errs []error
	for _, text := range s.ClusterCIDRs {
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("clusterCIDRs %q: use a range such as 10.128.0.0/16", text))
		case p != p.Masked():
			errs = append(errs, fmt.Errorf("clusterCIDRs %s has host bits set: did you mean %s?", p, p.Masked()))
		default:
			for _, other := range out {
				if other.Overlaps(p) {
					errs = append(errs, fmt.Errorf("clusterCIDRs %s and %s overlap", other, p))
				}
			}
			out = append(out, p)
		}
	}
	return out, errors.Join(errs...)
}
