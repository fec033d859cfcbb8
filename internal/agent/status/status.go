// Package status is what an agent says of itself while it serves, and the socket
// in its state directory that it says it on, as JSON over HTTP, to its own user.
//
// It knows no part of the agent, so that whoever asks needs none of it.
package status

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
	"slices"
	"strings"
	"sync"
	"time"
)

// socketName is the socket in the state directory.
const socketName = "status.sock"

// timeout bounds an answer.
const timeout = 5 * time.Second

// Status is what an agent says of itself.
type Status struct {
	Node     string            `json:"node"`
	Revision uint64            `json:"revision"` // of the cluster's state that is in force
	MTU      int               `json:"mtu"`
	Ports    []Port            `json:"ports"`
	Peers    []Peer            `json:"peers"`
	Tunnel   Tunnel            `json:"tunnel"`
	Pool     []Pool            `json:"addressPool"`
	Flows    int               `json:"flows"`
	Packets  uint64            `json:"packets"`
	Bytes    uint64            `json:"bytes"`
	Drops    map[string]uint64 `json:"drops"` // by reason, those that happened
	// PortsGone counts devices that somebody else deleted while they were read.
	PortsGone uint64 `json:"portsGone,omitempty"`
	// Services is whose traffic to Services is ours: "full" or "pods"; DNS whether
	// the name server's address is answered here: "on" or "off".
	Services string `json:"services"`
	DNS      string `json:"dns"`
	// Egress is how pods' connections to the outside leave: by "sockets" or "packets".
	Egress string `json:"egress"`
	// TUNOffload is what pods' devices and the node's leave to the kernel.
	TUNOffload Offload `json:"tunOffload"`
	Sockets    int     `json:"sockets"` // that listen for node ports and host ports
	Delay      Delay   `json:"delay"`   // of changes
	// Plugin is "installed", or why it is not; "" where somebody else installs it.
	// Before are the configurations that the container runtime reads instead.
	Plugin string   `json:"plugin,omitempty"`
	Before []string `json:"before,omitempty"`

	Process  Process  `json:"process"`
	Problems []string `json:"problems"`
}

// Offload says what is left to the kernel, and why no more and no less.
type Offload struct {
	Checksum bool   `json:"checksum"`
	TSO      bool   `json:"tso"` // TCP super-packets
	USO      bool   `json:"uso"` // UDP super-packets
	Why      string `json:"why"`
}

// String describes it for people.
func (o Offload) String() string {
	var on []string
	for _, p := range []struct {
		name string
		on   bool
	}{{"checksums", o.Checksum}, {"TCP", o.TSO}, {"UDP", o.USO}} {
		if p.on {
			on = append(on, p.name)
		}
	}
	if len(on) == 0 {
		on = append(on, "none")
	}
	return strings.Join(on, ", ") + " (" + o.Why + ")"
}

// Process is what the agent's process holds, where a leak would be seen.
type Process struct {
	PID        int    `json:"pid"` // in its own namespace
	Goroutines int    `json:"goroutines"`
	Files      int    `json:"files"` // open descriptors
	GC         Pauses `json:"gc"`

	Memory
}

// Port is one port.
type Port struct {
	Name      string       `json:"name"`
	Kind      string       `json:"kind"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
	Limits    *Limits      `json:"limits,omitempty"` // nil: it has none
}

// Limits are a pod's bandwidth and what came of it. Ingress is what the pod is sent.
type Limits struct {
	IngressBits uint64 `json:"ingressBitsPerSecond,omitempty"` // 0: no limit
	EgressBits  uint64 `json:"egressBitsPerSecond,omitempty"`  // 0: no limit
	// Held are packets to the pod that waited for their time, Dropped those for which
	// the queue had no room, Waiting the bytes in it.
	Held      uint64 `json:"held"`
	HeldBytes uint64 `json:"heldBytes"`
	Dropped   uint64 `json:"dropped"`
	Waiting   int64  `json:"waitingBytes"`
	// Pauses is how often the pod's own packets were left in its device, PausedSeconds
	// for how long altogether.
	Pauses        uint64  `json:"pauses"`
	PausedSeconds float64 `json:"pausedSeconds"`
}

// String describes the limits for people.
func (l *Limits) String() string {
	if l == nil {
		return ""
	}
	var parts []string
	if l.IngressBits > 0 {
		parts = append(parts, fmt.Sprintf("in %s (%d packets held, %d dropped)", bits(l.IngressBits), l.Held, l.Dropped))
	}
	if l.EgressBits > 0 {
		parts = append(parts, fmt.Sprintf("out %s (%d pauses, %.1f s)", bits(l.EgressBits), l.Pauses, l.PausedSeconds))
	}
	return strings.Join(parts, ", ")
}

// bits writes a rate with the largest unit that leaves it whole enough.
func bits(n uint64) string {
	rate := float64(n)
	for _, unit := range []string{"bit/s", "kbit/s", "Mbit/s", "Gbit/s"} {
		if rate < 1000 {
			return fmt.Sprintf("%.4g %s", rate, unit)
		}
		rate /= 1000
	}
	return fmt.Sprintf("%.4g Tbit/s", rate)
}

// Peer is one other node.
type Peer struct {
	Node          string         `json:"node"`
	Endpoint      netip.AddrPort `json:"endpoint"`
	AllowedIPs    []netip.Prefix `json:"allowedIPs"`
	LastHandshake time.Time      `json:"lastHandshake,omitzero"`
	RxBytes       uint64         `json:"rxBytes"`
	TxBytes       uint64         `json:"txBytes"`
	MTU           int            `json:"mtu"` // of packets to it: less than the pods' where the way is narrow
}

// Tunnel is what the tunnels of all peers do together.
type Tunnel struct {
	// UDPGSO and UDPGRO are "on", or "off: " and why.
	UDPGSO string `json:"udpGSO"`
	UDPGRO string `json:"udpGRO"`
	// Datagrams and the system calls that moved them.
	TxDatagrams uint64 `json:"txDatagrams"`
	TxBatches   uint64 `json:"txBatches"`
	RxDatagrams uint64 `json:"rxDatagrams"`
	RxBatches   uint64 `json:"rxBatches"`
	// RxShared are received pieces that were opened beside their reader.
	RxShared uint64 `json:"rxShared"`

	Drops map[string]uint64 `json:"drops"` // by reason, those that happened
}

// Pool is the numbers of one family's addresses.
type Pool struct {
	Family  string `json:"family"`
	Total   uint64 `json:"total"`
	Used    uint64 `json:"used"`
	Cooling uint64 `json:"cooling"`
	Free    uint64 `json:"free"`
}

// Serve answers in a state directory until the context ends. describe is called
// from many goroutines, and by none once Serve has returned: what it looks at may be
// gone then.
func Serve(ctx context.Context, stateDir string, describe func() (Status, error)) error {
	path := filepath.Join(stateDir, socketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the former status socket: %w", err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path) // the directory keeps others out
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		return fmt.Errorf("listen for status: %w", err)
	}
	mux := http.NewServeMux()
	var gate sync.RWMutex // whoever describes has it for reading
	ended := false        // guarded by gate
	defer func() {
		gate.Lock()
		ended = true
		gate.Unlock()
	}()
	ask := func() (Status, error) {
		gate.RLock()
		defer gate.RUnlock()
		if ended {
			return Status{}, errors.New("this agent does not serve any more: ask again, another one may by now")
		}
		return describe()
	}
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		s, err := ask()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s) // the client may be gone
	})
	debug(mux)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: timeout}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve status: %w", err)
	}
	return nil
}

// Read asks the agent whose state directory this is.
func Read(ctx context.Context, stateDir string) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	res, err := ask(ctx, stateDir, "/status")
	if err != nil {
		return Status{}, err
	}
	defer res.Body.Close()
	var s Status
	if err := json.NewDecoder(res.Body).Decode(&s); err != nil {
		return Status{}, fmt.Errorf("the agent answered %s: %w", res.Status, err)
	}
	return s, nil
}

// ask asks the agent whose state directory this is for something.
func ask(ctx context.Context, stateDir, what string) (*http.Response, error) {
	path := filepath.Join(stateDir, socketName)
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+what, http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("ask the agent: %w", err)
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the agent at %s: %w; is it running, and is --state-dir its directory?", path, err)
	}
	return res, nil
}

// Sent returns how many datagrams a system call moved.
func (t *Tunnel) Sent() float64 { return ratio(t.TxDatagrams, t.TxBatches) }

// Received is Sent for the other direction.
func (t *Tunnel) Received() float64 { return ratio(t.RxDatagrams, t.RxBatches) }

func ratio(a, b uint64) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

// Summary returns drops by reason as one line for people, the most frequent first.
func Summary(drops map[string]uint64) string {
	reasons := make([]string, 0, len(drops))
	for r := range drops {
		reasons = append(reasons, r)
	}
	slices.SortFunc(reasons, func(x, y string) int {
		if d := int64(drops[y]) - int64(drops[x]); d != 0 { // counts stay far below
			return int(max(-1, min(1, d)))
		}
		return strings.Compare(x, y)
	})
	var b strings.Builder
	for i, r := range reasons {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s %d", r, drops[r])
	}
	if b.Len() == 0 {
		return "none"
	}
	return b.String()
}
