package dns

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// errNoUpstream is wrapped by what ResolvConf.Err returns when no file names a
// usable server.
var errNoUpstream = errors.New("no usable nameserver")

const (
	// checkEvery is how often the files are looked at, at most.
	checkEvery = time.Second
	// maxResolvConf bounds what is read of a file.
	maxResolvConf = 64 << 10
	// maxServers is more than any resolver uses.
	maxServers = 15
	portDNS    = 53
)

// ResolvConf reads upstreams from resolv.conf files while they change. It is
// safe for concurrent use.
type ResolvConf struct {
	cfg ResolvConfConfig

	mu      sync.Mutex
	checked time.Time        // guarded by mu
	stamps  []stamp          // guarded by mu
	list    []netip.AddrPort // guarded by mu
	err     error            // guarded by mu
}

// ResolvConfConfig says what to read and whom not to ask.
type ResolvConfConfig struct {
	// Paths are read in order; the first that names a usable server wins. none
	// is /etc/resolv.conf and then the file where systemd-resolved keeps the
	// servers that stand behind its own loopback address.
	Paths []string
	// Refuse returns why an address cannot be an upstream, such as one of our
	// own or one that is routed to us; nil refuses none. Loopback and
	// unspecified addresses are refused always: what listens there asks us.
	Refuse func(netip.Addr) error
	// Logger is told when the list changes; nil discards.
	Logger *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// stamp is how a change of a file shows.
type stamp struct {
	modified time.Time
	size     int64
}

// NewResolvConf returns a reader. It reads at the first question.
func NewResolvConf(cfg ResolvConfConfig) *ResolvConf {
	if len(cfg.Paths) == 0 {
		cfg.Paths = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &ResolvConf{cfg: cfg}
}

// Upstreams returns the servers of the files as they are now; it looks at them
// at most once a second. While no file names a usable server it is empty, and
// the log tells why; files that cannot be read leave it as it was. The slice must
// not be changed.
func (r *ResolvConf) Upstreams() []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.cfg.Now()
	if !r.checked.IsZero() && now.Sub(r.checked) >= 0 && now.Sub(r.checked) < checkEvery {
		return r.list
	}
	r.checked = now
	stamps := make([]stamp, len(r.cfg.Paths))
	for i, p := range r.cfg.Paths {
		if info, err := os.Stat(p); err == nil {
			stamps[i] = stamp{modified: info.ModTime(), size: info.Size()}
		}
	}
	if r.stamps != nil && slices.Equal(stamps, r.stamps) {
		return r.list
	}
	r.stamps = stamps
	r.read()
	return r.list
}

// read reads the files; mu is held.
func (r *ResolvConf) read() {
	var problems []error
	readable := false
	for _, p := range r.cfg.Paths {
		servers, err := readServers(p)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		readable = true
		var usable []netip.AddrPort
		for _, a := range servers {
			if err := r.refuse(a); err != nil {
				problems = append(problems, fmt.Errorf("%s: nameserver %s: %w", p, a, err))
				continue
			}
			usable = append(usable, netip.AddrPortFrom(a, portDNS))
		}
		if len(usable) > 0 {
			r.set(usable, errors.Join(problems...))
			return
		}
	}
	err := errors.Join(append([]error{errNoUpstream}, problems...)...)
	if !readable && len(r.list) > 0 { // the files are being replaced
		r.err = err
		return
	}
	r.set(nil, err)
}

// set stores the outcome and logs it when it is new; mu is held.
func (r *ResolvConf) set(list []netip.AddrPort, err error) {
	if err != nil && (r.err == nil || err.Error() != r.err.Error()) {
		r.cfg.Logger.Warn("dns upstreams refused", "error", err)
	}
	if !slices.Equal(list, r.list) {
		r.cfg.Logger.Info("dns upstreams changed", "upstreams", list)
	}
	r.list, r.err = list, err
}

// refuse returns why an address is no upstream.
func (r *ResolvConf) refuse(a netip.Addr) error {
	switch {
	case a.IsLoopback():
		return errors.New("a loopback address would send the question in a circle; name the real server")
	case a.IsUnspecified() || a.IsMulticast():
		return errors.New("not the address of a server")
	case r.cfg.Refuse != nil:
		return r.cfg.Refuse(a)
	}
	return nil
}

// readServers reads the nameserver lines of a file.
func readServers(path string) ([]netip.Addr, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxResolvConf))
	if err != nil {
		return nil, err
	}
	return parseServers(b), nil
}

// parseServers returns the addresses of resolv.conf(5) nameserver lines, each
// once. Lines that it does not understand are not there for it, as for libc.
func parseServers(b []byte) []netip.Addr {
	var out []netip.Addr
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan() && len(out) < maxServers; {
		f := strings.Fields(lines.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(f[1])
		if err == nil && !slices.Contains(out, a.Unmap()) {
			out = append(out, a.Unmap())
		}
	}
	return out
}
