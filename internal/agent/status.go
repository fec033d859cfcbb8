package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/netctl/netctl/internal/kernel"
)

// StatusSocket is the name of the socket in the state directory that Status is
// served on, as JSON over HTTP, to the agent's own user.
const StatusSocket = "status.sock"

// Status is what an agent says of itself.
type Status struct {
	Node     string            `json:"node"`
	Revision uint64            `json:"revision"` // of the cluster's state that is in force
	MTU      int               `json:"mtu"`
	Ports    []PortStatus      `json:"ports"`
	Peers    []PeerStatus      `json:"peers"`
	Pool     []PoolStatus      `json:"addressPool"`
	Flows    int               `json:"flows"`
	Packets  uint64            `json:"packets"`
	Bytes    uint64            `json:"bytes"`
	Drops    map[string]uint64 `json:"drops"` // by reason, those that happened
	// PortsGone counts devices that somebody else deleted while they were read.
	PortsGone uint64        `json:"portsGone,omitempty"`
	Process   ProcessStatus `json:"process"`
	Problems  []string      `json:"problems"`
}

// ProcessStatus is what the agent's process holds, where a leak would be seen.
type ProcessStatus struct {
	PID        int `json:"pid"` // in its own namespace
	Goroutines int `json:"goroutines"`
	Files      int `json:"files"` // open descriptors
}

// PortStatus is one port.
type PortStatus struct {
	Name      string       `json:"name"`
	Kind      string       `json:"kind"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
}

// PeerStatus is one other node.
type PeerStatus struct {
	Node          string         `json:"node"`
	Endpoint      netip.AddrPort `json:"endpoint"`
	AllowedIPs    []netip.Prefix `json:"allowedIPs"`
	LastHandshake time.Time      `json:"lastHandshake,omitzero"`
	RxBytes       uint64         `json:"rxBytes"`
	TxBytes       uint64         `json:"txBytes"`
}

// PoolStatus is the numbers of one family's addresses.
type PoolStatus struct {
	Family  string `json:"family"`
	Total   uint64 `json:"total"`
	Used    uint64 `json:"used"`
	Cooling uint64 `json:"cooling"`
	Free    uint64 `json:"free"`
}

// status describes the agent as it is.
func (a *Agent) status() (Status, error) {
	counters := a.router.Counters()
	s := Status{
		Node: a.cfg.Node, Revision: a.router.Tables().Revision, MTU: a.mtu, Flows: a.flows.Len(),
		Packets: counters.Packets, Bytes: counters.Bytes, Drops: counters.ByReason(), PortsGone: counters.PortsGone, Problems: a.loop.Problems(),
	}
	for _, p := range a.localPorts() {
		s.Ports = append(s.Ports, PortStatus{Name: p.Name, Kind: p.Kind.String(), Addresses: p.Addrs})
	}
	files, err := kernel.OpenFiles()
	if err != nil {
		return Status{}, err
	}
	s.Process = ProcessStatus{PID: os.Getpid(), Goroutines: runtime.NumGoroutine(), Files: files}
	peers, err := a.engine.Peers()
	if err != nil {
		return Status{}, fmt.Errorf("ask the overlay for its peers: %w", err)
	}
	for _, p := range peers {
		s.Peers = append(s.Peers, PeerStatus{
			Node: p.Node, Endpoint: p.Endpoint, AllowedIPs: p.AllowedIPs, LastHandshake: p.LastHandshake, RxBytes: p.RxBytes, TxBytes: p.TxBytes,
		})
	}
	for _, f := range a.poolFamilies() {
		u := a.pool.Usage(f)
		s.Pool = append(s.Pool, PoolStatus{Family: u.Family, Total: u.Total, Used: u.Used, Cooling: u.Cooling, Free: u.Free})
	}
	return s, nil
}

// serveStatus answers on the status socket until the context ends.
func (a *Agent) serveStatus(ctx context.Context) error {
	path := filepath.Join(a.cfg.StateDir, StatusSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the former status socket: %w", err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path) // the directory keeps others out
	if err != nil {
		return fmt.Errorf("listen for status: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		s, err := a.status()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s) // the client may be gone
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: statusTimeout}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve status: %w", err)
	}
	return nil
}

const statusTimeout = 5 * time.Second

// ReadStatus asks the agent whose state directory this is.
func ReadStatus(ctx context.Context, stateDir string) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	path := filepath.Join(stateDir, StatusSocket)
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/status", http.NoBody)
	if err != nil {
		return Status{}, fmt.Errorf("ask the agent: %w", err)
	}
	res, err := client.Do(req)
	if err != nil {
		return Status{}, fmt.Errorf("ask the agent at %s: %w; is it running, and is --state-dir its directory?", path, err)
	}
	defer res.Body.Close()
	var s Status
	if err := json.NewDecoder(res.Body).Decode(&s); err != nil {
		return Status{}, fmt.Errorf("the agent answered %s: %w", res.Status, err)
	}
	return s, nil
}

// Summary returns the drops as one line for people, the most frequent first.
func (s *Status) Summary() string {
	reasons := make([]string, 0, len(s.Drops))
	for r := range s.Drops {
		reasons = append(reasons, r)
	}
	slices.SortFunc(reasons, func(x, y string) int {
		if d := int64(s.Drops[y]) - int64(s.Drops[x]); d != 0 { // counts stay far below
			return int(max(-1, min(1, d)))
		}
		return strings.Compare(x, y)
	})
	var b strings.Builder
	for i, r := range reasons {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s %d", r, s.Drops[r])
	}
	if b.Len() == 0 {
		return "none"
	}
	return b.String()
}
