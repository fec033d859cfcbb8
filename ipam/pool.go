package ipam

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// The pool's times and sizes.
const (
	// DefaultCooldown is how long a released address rests: longer than any
	// connection entry of another program can still lead to it unanswered (Linux
	// keeps SYN_SENT for 120 s at most and 60 s by default in kube-proxy's
	// reference; DNS answers live 30 s).
	DefaultCooldown = 60 * time.Second
	// DefaultFloor is how long it rests even when there is no other address left.
	// Between the two it is handed out rather than failing a pod, and counted.
	DefaultFloor = 30 * time.Second
	// DefaultLeakGrace is how old a lease without a container must be to be a leak.
	DefaultLeakGrace = 60 * time.Second
	// compactAfter is how many journal lines are worth a new snapshot, at least;
	// with many leases it takes as many lines as there are leases, so that the
	// cost per change stays the same.
	compactAfter = 1024
	// maxIdentity bounds each part of an identity (they are others' strings).
	maxIdentity = 256
)

// Families is a set of address families.
type Families uint8

// The families; IPv4|IPv6 is both.
const (
	IPv4 Families = 1 << iota
	IPv6
)

// ID is whose an address is: a container's interface. Names of pods are no
// identity: a StatefulSet's pods come back under the same one.
type ID struct {
	ContainerID string
	IfName      string
}

// String returns "container/interface".
func (i ID) String() string { return i.ContainerID + "/" + i.IfName }

// checkID reports why an identity cannot be recorded.
func checkID(i ID) error {
	for _, s := range []string{i.ContainerID, i.IfName} {
		if s == "" || len(s) > maxIdentity || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return fmt.Errorf("container %q, interface %q: not a valid identity", i.ContainerID, i.IfName)
		}
	}
	return nil
}

// Lease is the addresses of one container interface, at most one of each
// family, IPv4 first.
type Lease struct {
	ID
	PodUID    string
	Addresses []netip.Addr
	Since     time.Time

	seq     uint64
	suspect uint64 // the Mark under which it was first seen without a container
}

// clone returns a lease that the caller may keep.
func (l *Lease) clone() Lease {
	c := *l
	c.Addresses = slices.Clone(l.Addresses)
	return c
}

// Usage is the numbers of one family. Total = Used + Cooling + Reserved + Free.
type Usage struct {
	Family   string // "IPv4"
	Blocks   int
	Total    uint64
	Used     uint64
	Cooling  uint64 // released, not rested yet
	Reserved uint64 // not for pods, or held
	Free     uint64
	Outside  uint64 // leases of addresses that are in no block (any more)
	Bypassed uint64 // addresses handed out before their cool-down was over, since Open
}

// Report is what Open found.
type Report struct {
	Leases    int
	Damaged   int // lines that did not check
	Lost      int // lines that a snapshot promises and does not have
	Conflicts int // leases of addresses that were leased already
}

// Broken reports whether the record may lack leases, so that what runs on the
// node should be looked at and adopted before anything is allocated.
func (r Report) Broken() bool { return r.Damaged+r.Lost+r.Conflicts > 0 }

// Config says how a pool works; the zero value of all but Dir is useful.
type Config struct {
	Dir       string // where the record is; made when it is not there
	Cooldown  time.Duration
	Floor     time.Duration
	LeakGrace time.Duration
	Now       func() time.Time
	Logger    *slog.Logger

	disk disk // tests
}

// Pool hands out the addresses of a node's blocks and keeps the record. Its
// methods may be called concurrently; each is durable when it returns.
type Pool struct {
	cfg Config

	mu       sync.Mutex
	disk     disk
	report   Report
	seq      uint64 // of the last line, also one that could not be written
	leases   map[ID]*Lease
	byAddr   map[netip.Addr]*Lease
	spaces   [2]space // IPv4, IPv6
	bypassed [2]uint64
	marks    uint64
	size     int64 // of the journal, up to the last good line
	lines    int   // in the journal
	torn     bool  // the journal may have more than size: snapshot before appending
	buf      []byte
}

// Open reads the record in cfg.Dir and locks it until Close. A damaged record
// is not an error: what can be read is used, the damaged file is kept aside,
// and Report tells. A pool has no blocks before SetBlocks.
func Open(cfg Config) (*Pool, error) {
	cfg.Cooldown = cmp.Or(cfg.Cooldown, DefaultCooldown)
	cfg.Floor = min(cmp.Or(cfg.Floor, DefaultFloor), cfg.Cooldown)
	cfg.LeakGrace = cmp.Or(cfg.LeakGrace, DefaultLeakGrace)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Pool{cfg: cfg, disk: cfg.disk, leases: map[ID]*Lease{}, byAddr: map[netip.Addr]*Lease{}}
	p.spaces = [2]space{newSpace(p.byAddr), newSpace(p.byAddr)}
	if p.disk == nil {
		d, err := openDirectory(cfg.Dir)
		if err != nil {
			return nil, fmt.Errorf("open address record: %w", err)
		}
		p.disk = d
	}
	if err := p.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("open address record in %s: %w", cfg.Dir, err), p.disk.close())
	}
	return p, nil
}

// Close releases the record. The pool is of no use afterwards.
func (p *Pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.disk.close()
}

// Report returns what Open found.
func (p *Pool) Report() Report { return p.report }

// space returns the space of an address's family.
func (p *Pool) space(a netip.Addr) *space {
	if a.Is4() {
		return &p.spaces[0]
	}
	return &p.spaces[1]
}

// SetBlocks says which blocks the node has now. Leases in a block that went
// away stay until they are released; nothing is allocated from it.
func (p *Pool) SetBlocks(blocks []netip.Prefix) error {
	var lists [2][]netip.Prefix
	for i, b := range blocks {
		if err := checkBlock(b); err != nil {
			return err
		}
		for _, o := range blocks[:i] {
			if o != b && o.Overlaps(b) {
				return fmt.Errorf("blocks %s and %s overlap", o, b)
			}
		}
		f := 0
		if b.Addr().Is6() {
			f = 1
		}
		if !slices.Contains(lists[f], b) {
			lists[f] = append(lists[f], b)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for f := range lists {
		slices.SortFunc(lists[f], netip.Prefix.Compare)
		p.spaces[f].setBlocks(lists[f])
	}
	return nil
}

// Allocate gives a container's interface an address of each wanted family, or
// none and an error: *ExhaustedError when a family has none left, ErrConflict
// when the container is recorded for another pod or with other families. Asked
// again for the same container it returns the lease that there is, so that an
// ADD that was cut short can be repeated.
func (p *Pool) Allocate(id ID, podUID string, want Families) (Lease, error) {
	if err := checkIdentity(id, podUID); err != nil {
		return Lease{}, err
	}
	if want&^(IPv4|IPv6) != 0 || want == 0 {
		return Lease{}, fmt.Errorf("allocate for %s: no such families", id)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.leases[id]; l != nil {
		if l.PodUID != podUID || l.families() != want {
			return Lease{}, fmt.Errorf("allocate for %s of pod %s: %w (%s)", id, podUID, ErrConflict, l.PodUID)
		}
		return l.clone(), nil
	}
	now := p.cfg.Now()
	l := &Lease{ID: id, PodUID: podUID, Since: now}
	var bypassed [2]uint64
	for f := range p.spaces {
		if want&(IPv4<<f) == 0 {
			continue
		}
		a, from := p.spaces[f].next(now, p.cfg.Floor, p.cfg.Cooldown)
		if from == supplyNone {
			return Lease{}, fmt.Errorf("allocate for %s: %w", id, &ExhaustedError{p.usage(f)})
		}
		if from == supplyCooling {
			bypassed[f] = 1
		}
		l.Addresses = append(l.Addresses, a)
	}
	if err := p.add(l); err != nil {
		return Lease{}, fmt.Errorf("allocate for %s: %w", id, err)
	}
	for f, n := range bypassed {
		p.bypassed[f] += n
	}
	return l.clone(), nil
}

// families returns which families a lease has.
func (l *Lease) families() Families {
	var f Families
	for _, a := range l.Addresses {
		if a.Is4() {
			f |= IPv4
		} else {
			f |= IPv6
		}
	}
	return f
}

// Adopt records a lease that exists in the world but not in the record, such
// as the addresses of a pod's interface that was found after the record was
// lost. What is recorded already is left alone; an address or container that is
// recorded otherwise is ErrConflict.
func (p *Pool) Adopt(id ID, podUID string, addresses []netip.Addr) error {
	l := &Lease{ID: id, PodUID: podUID, Since: p.cfg.Now(), Addresses: slices.SortedFunc(slices.Values(addresses), netip.Addr.Compare)}
	probe := line{Op: opAdd, CID: id.ContainerID, If: id.IfName, Addr: l.Addresses}
	if err := errors.Join(checkIdentity(id, podUID), probe.check()); err != nil {
		return fmt.Errorf("adopt %s with %v: %w", id, addresses, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := p.leases[id]; old != nil {
		if old.PodUID == podUID && slices.Equal(old.Addresses, l.Addresses) {
			return nil
		}
		return fmt.Errorf("adopt %s with %v: %w", id, addresses, ErrConflict)
	}
	for _, a := range l.Addresses {
		if other := p.byAddr[a]; other != nil {
			return fmt.Errorf("adopt %s: %s belongs to %s: %w", id, a, other.ID, ErrConflict)
		}
	}
	if err := p.add(l); err != nil {
		return fmt.Errorf("adopt %s: %w", id, err)
	}
	return nil
}

// checkIdentity checks everything of a lease that comes from others.
func checkIdentity(id ID, podUID string) error {
	if err := checkID(id); err != nil {
		return err
	}
	if len(podUID) > maxIdentity || strings.ContainsFunc(podUID, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("pod UID %q is not valid", podUID)
	}
	return nil
}

// add records a lease, then makes it true. p.mu is held.
func (p *Pool) add(l *Lease) error {
	rec := line{Op: opAdd, Time: l.Since.UnixMilli(), CID: l.ContainerID, If: l.IfName, UID: l.PodUID, Addr: l.Addresses}
	seq, err := p.record(rec)
	if err != nil {
		return err
	}
	l.seq = seq
	p.insert(l)
	p.tidy()
	return nil
}

// insert puts a lease into the tables.
func (p *Pool) insert(l *Lease) {
	p.leases[l.ID] = l
	for _, a := range l.Addresses {
		p.byAddr[a] = l
		p.space(a).take(a)
	}
}

// Hold names the addresses that somebody has although no lease says so, such as
// pods that were started under a record that is lost. They are not handed out
// until a later call leaves them out, and then rest first. It is not recorded.
func (p *Pool) Hold(addrs []netip.Addr) {
	var held [2]map[netip.Addr]bool
	for _, a := range addrs {
		f := 0
		if a.Is6() {
			f = 1
		}
		if held[f] == nil {
			held[f] = map[netip.Addr]bool{}
		}
		held[f][a] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for f := range p.spaces {
		if len(p.spaces[f].held) > 0 || len(held[f]) > 0 {
			p.spaces[f].hold(held[f], p.cfg.Now(), p.seq)
		}
	}
}

// Release ends a lease and returns it. Releasing what is not leased succeeds
// and returns a Lease without addresses. The interface must be gone before: the
// address may be given to another pod once it has rested.
func (p *Pool) Release(id ID) (Lease, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.release(id)
}

func (p *Pool) release(id ID) (Lease, error) {
	l := p.leases[id]
	if l == nil {
		return Lease{ID: id}, nil
	}
	now := p.cfg.Now()
	seq, err := p.record(line{Op: opFree, Time: now.UnixMilli(), CID: id.ContainerID, If: id.IfName, Addr: l.Addresses})
	if err != nil {
		return Lease{}, fmt.Errorf("release %s: %w", id, err)
	}
	p.remove(l)
	for _, a := range l.Addresses {
		p.space(a).put(released{addr: a, at: now, seq: seq})
	}
	p.tidy()
	return l.clone(), nil
}

// remove takes a lease out of the tables.
func (p *Pool) remove(l *Lease) {
	delete(p.leases, l.ID)
	for _, a := range l.Addresses {
		delete(p.byAddr, a)
	}
}

// Lookup returns the lease of a container's interface.
func (p *Pool) Lookup(id ID) (Lease, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.leases[id]; l != nil {
		return l.clone(), true
	}
	return Lease{}, false
}

// Leases returns all leases, the oldest first.
func (p *Pool) Leases() []Lease {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]Lease, 0, len(p.leases))
	for _, l := range p.ordered() {
		out = append(out, l.clone())
	}
	return out
}

func (p *Pool) ordered() []*Lease {
	return slices.SortedFunc(maps.Values(p.leases), func(a, b *Lease) int { return cmp.Compare(a.seq, b.seq) })
}

// Usage returns the numbers of a family; of IPv4 when asked for both.
func (p *Pool) Usage(f Families) Usage {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f&IPv4 != 0 {
		return p.usage(0)
	}
	return p.usage(1)
}

func (p *Pool) usage(f int) Usage {
	u := p.spaces[f].usage(p.cfg.Now(), p.cfg.Cooldown)
	u.Family = [2]string{"IPv4", "IPv6"}[f]
	u.Bypassed = p.bypassed[f]
	for a := range p.byAddr {
		if a.Is6() != (f == 1) {
			continue
		}
		if b := p.spaces[f].block(a); b != nil && b.forPods(a) {
			u.Used++
		} else {
			u.Outside++
		}
	}
	u.Free = u.Total - u.Reserved - u.Used - u.Cooling
	return u
}

// Mark is a moment in a pool's history.
type Mark struct {
	n   uint64 // which Mark, from 1
	seq uint64
	at  time.Time
}

// Mark notes which leases there are. Take it before the list of containers is
// made that Collect compares with: what is leased after that is not in either.
func (p *Pool) Mark() Mark {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.marks++
	return Mark{n: p.marks, seq: p.seq, at: p.cfg.Now()}
}

// Collect frees leaked leases and returns them. A lease is a leak when it is
// older than the grace and was missing from the live ones in two calls in a
// row, each with a Mark of its own. The caller lists live containers between
// Mark and Collect, and must not call Collect when it could not list them all.
func (p *Pool) Collect(m Mark, live []ID) ([]Lease, error) {
	alive := make(map[ID]bool, len(live))
	for _, id := range live {
		alive[id] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var freed []Lease
	for _, l := range p.ordered() {
		switch {
		case l.seq > m.seq:
		case alive[l.ID]:
			l.suspect = 0
		case m.at.Sub(l.Since) < p.cfg.LeakGrace:
		case l.suspect == 0:
			l.suspect = m.n
		case l.suspect != m.n:
			f, err := p.release(l.ID)
			if err != nil {
				return freed, err
			}
			freed = append(freed, f)
		}
	}
	return freed, nil
}
