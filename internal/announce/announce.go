// Package announce answers for addresses on the networks that a node's interfaces are
// in, though no interface has them: ARP (RFC 826, RFC 5227) for IPv4, neighbour
// discovery (RFC 4861) for IPv6. Machines there then send packets for such an address
// to this node, whose kernel has a route for it.
//
//	Apply ── addresses ──▶ listening sockets, one for each interface and family
//	who has A? ─▶ we have                 when A is ours, and came to us as it should
//	nobody asks ─▶ we have, several times  when A becomes ours: caches of others
//	                                       still name the node that had it before
//
// message.go reads and writes messages and is pure; socket.go is Linux.
//
// Invariants: nothing is answered but a request for an address of ours, on an
// interface that has the address' network, or else the default route's. A message
// that is not exactly what its RFC says is ignored. Sockets filter in the kernel, so
// that nothing else on a busy network costs anything.
package announce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"
)

// Link is an interface to answer on.
type Link struct {
	Name     string
	Index    int
	MAC      [6]byte
	Prefixes []netip.Prefix
}

// Config is what New needs.
type Config struct {
	// Links lists the interfaces, nil: those of the namespace that are up and have an
	// Ethernet address.
	Links func() ([]Link, error)
	// Default names the interface of the default route; "": there is none.
	Default func() string
	Logger  *slog.Logger
}

// When an address that has become ours is announced, and how often afterwards, so
// that caches are mended that another node has filled.
const again = time.Minute

func bursts() []time.Duration {
	return []time.Duration{0, 200 * time.Millisecond, 800 * time.Millisecond, time.Second}
}

// Server answers. Its methods may be called from any goroutine.
type Server struct {
	cfg Config

	mu    sync.Mutex
	ours  map[netip.Addr]context.CancelFunc // guarded by mu: what ends its announcements
	links map[int]*listener                 // guarded by mu, by index
	way   string                            // guarded by mu: the default route's interface, as of the last Apply
	work  sync.WaitGroup
}

// listener is an interface with its sockets.
type listener struct {
	Link

	arp, ndp *socket
}

// New returns a Server that answers for nothing yet.
func New(cfg Config) *Server {
	if cfg.Links == nil {
		cfg.Links = hostLinks
	}
	if cfg.Default == nil {
		cfg.Default = func() string { return "" }
	}
	return &Server{cfg: cfg, ours: make(map[netip.Addr]context.CancelFunc), links: make(map[int]*listener)}
}

// hostLinks are the interfaces that others can be asked on.
func hostLinks() ([]Link, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var out []Link
	for _, i := range all {
		if i.Flags&net.FlagUp == 0 || i.Flags&(net.FlagLoopback|net.FlagPointToPoint) != 0 || len(i.HardwareAddr) != 6 {
			continue
		}
		l := Link{Name: i.Name, Index: i.Index, MAC: [6]byte(i.HardwareAddr)}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it is gone
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() {
				l.Prefixes = append(l.Prefixes, p.Masked())
			}
		}
		out = append(out, l)
	}
	return out, nil
}

// Apply makes these addresses ours, and no others. It may be called again and again,
// and looks at the interfaces every time.
func (s *Server) Apply(addrs []netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for a, end := range s.ours {
		if !slices.Contains(addrs, a) {
			end()
			delete(s.ours, a)
		}
	}
	var errs []error
	if len(addrs) > 0 || len(s.links) > 0 {
		errs = append(errs, s.listen(addrs))
	}
	for _, a := range addrs {
		if s.ours[a] != nil {
			continue
		}
		ctx, end := context.WithCancel(context.Background())
		s.ours[a] = end
		s.work.Go(func() { s.announce(ctx, a) })
	}
	return errors.Join(errs...)
}

// listen opens sockets where the addresses are to be answered for, and closes the
// others; mu is held.
func (s *Server) listen(addrs []netip.Addr) error {
	links, err := s.cfg.Links()
	if err != nil {
		return fmt.Errorf("list the node's interfaces: %w", err)
	}
	want := map[int]Link{}
	s.way = s.cfg.Default()
	var errs []error
	for _, a := range addrs {
		on := places(a, links, s.way)
		if len(on) == 0 {
			errs = append(errs, fmt.Errorf("no interface of this node has the network of %s, and none has a default route: nobody is answered that asks for it", a))
		}
		for _, l := range on {
			want[l.Index] = l
		}
	}
	for i, have := range s.links {
		if l, ok := want[i]; !ok || l.MAC != have.MAC || l.Name != have.Name {
			have.close()
			delete(s.links, i)
		} else {
			have.Prefixes = l.Prefixes
		}
	}
	for i, l := range want {
		if s.links[i] != nil {
			continue
		}
		one := &listener{Link: l}
		if one.arp, err = openSocket(l, protoARP); err == nil {
			one.ndp, err = openSocket(l, protoIPv6)
		}
		if err != nil {
			one.close()
			errs = append(errs, fmt.Errorf("answer for load balancer addresses on %s: %w", l.Name, err))
			continue
		}
		s.links[i] = one
		s.work.Go(func() { s.serve(one, one.arp) })
		s.work.Go(func() { s.serve(one, one.ndp) })
	}
	for _, one := range s.links {
		var six []netip.Addr
		for _, a := range addrs {
			if a.Is6() {
				six = append(six, a)
			}
		}
		one.ndp.join(six)
	}
	return errors.Join(errs...)
}

// places are the interfaces that an address is answered for on: those in whose
// network it is, else that of the default route.
func places(a netip.Addr, links []Link, defaultLink string) []Link {
	var out []Link
	for _, l := range links {
		if slices.ContainsFunc(l.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) }) {
			out = append(out, l)
		}
	}
	if len(out) > 0 {
		return out
	}
	return slices.DeleteFunc(slices.Clone(links), func(l Link) bool { return l.Name != defaultLink })
}

// readPause is how long a socket is left alone that could not be read, as when its
// interface went down: it works again when that is up.
const readPause = 100 * time.Millisecond

// serve answers what comes by a socket until it is closed.
func (s *Server) serve(l *listener, sock *socket) {
	buf := make([]byte, maxMessage)
	for {
		n, err := sock.read(buf)
		if errors.Is(err, os.ErrClosed) || errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.cfg.Logger.Debug("questions for addresses not read, trying again", "interface", l.Name, "error", err)
			<-time.After(readPause)
			continue
		}
		target, asker, ok := question(buf[:n])
		if !ok || !s.answers(target, l) {
			continue
		}
		_ = sock.write(answer(l.MAC, target, asker)) // a lost one is asked for again
	}
}

// answers reports whether we have an address, as far as an interface is concerned.
func (s *Server) answers(a netip.Addr, l *listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ours[a] == nil {
		return false
	}
	links := make([]Link, 0, len(s.links))
	for _, one := range s.links {
		links = append(links, one.Link)
	}
	return slices.ContainsFunc(places(a, links, s.way), func(p Link) bool { return p.Index == l.Index })
}

// announce tells everybody of an address, until it is not ours any more.
func (s *Server) announce(ctx context.Context, a netip.Addr) {
	for i := 0; ; i++ {
		wait := again
		if b := bursts(); i < len(b) {
			wait = b[i]
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		s.tell(a)
	}
}

// tell sends one announcement on every interface.
func (s *Server) tell(a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	links := make([]Link, 0, len(s.links))
	for _, one := range s.links {
		links = append(links, one.Link)
	}
	for _, l := range places(a, links, s.way) {
		one := s.links[l.Index]
		sock := one.ndp
		if a.Is4() {
			sock = one.arp
		}
		for _, m := range announcement(l.MAC, a) {
			if err := sock.write(m); err != nil {
				s.cfg.Logger.Debug("announcement not sent", "address", a, "interface", l.Name, "error", err)
			}
		}
	}
}

// Close gives everything up.
func (s *Server) Close() {
	s.mu.Lock()
	for a, end := range s.ours {
		end()
		delete(s.ours, a)
	}
	for i, l := range s.links {
		l.close()
		delete(s.links, i)
	}
	s.mu.Unlock()
	s.work.Wait()
}

func (l *listener) close() {
	for _, s := range []*socket{l.arp, l.ndp} {
		if s != nil {
			s.close()
		}
	}
}
