package overlay

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gaissmai/bart"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/overlay/handshake"
	"github.com/netctl/netctl/overlay/sessions"
	"github.com/netctl/netctl/overlay/udp"
)

const (
	// DefaultPort is where WireGuard listens unless it is told otherwise.
	DefaultPort = 51820
	// MaxPeers bounds the peers, and with them all that is kept per peer.
	MaxPeers = sessions.DefaultSlots / slotsPerPeer

	// slotsPerPeer: the previous, current and next key pair, and a handshake.
	slotsPerPeer = 4
	// defaultQueueBytes holds some 30 super-packets that wait for a handshake.
	defaultQueueBytes = 2 << 20

	// seizeFor is how long Start waits for the session file, seizeAgain how often
	// it looks.
	seizeFor   = 2 * time.Second
	seizeAgain = 5 * time.Millisecond

	minMTU = 576                                       // RFC 791
	maxMTU = (udp.MaxPiece - handshake.Overhead) &^ 15 // what one message can carry, padded
	minIP4 = packet.VNetLen + 20                       // up to the end of the destination
	minIP6 = packet.VNetLen + 40                       //
	dstIP4 = packet.VNetLen + 16                       //
	dstIP6 = packet.VNetLen + 24                       //
)

// Wire moves datagrams. One Wire serves one engine, which opens and closes it.
type Wire interface {
	Outgoing
	// Listen opens the wire on a port, or a free one for 0, and returns how many
	// queues it is read from.
	Listen(port uint16) (queues int, actual uint16, err error)
	// Receive waits for pieces and fills bufs: sizes[i] bytes are datagrams of
	// segments[i] bytes each, the last maybe shorter, from from[i]. One goroutine
	// per queue calls it. After Interrupt or Close it returns net.ErrClosed; after
	// any other error it is called again.
	Receive(queue int, bufs [][]byte, sizes, segments []int, from []netip.AddrPort) (int, error)
	Interrupt()
	Close() error
}

// Outgoing is the half of a Wire that sends.
type Outgoing interface {
	// Send sends buf as datagrams of size bytes each, the last maybe shorter. It
	// neither waits nor keeps buf. It returns udp.ErrNarrow when they went, but in
	// fragments.
	Send(buf []byte, size int, to netip.AddrPort) error
	// LongestWhole returns the longest datagram that is believed to reach an
	// address without fragments, 0: nothing is known of it.
	LongestWhole(to netip.AddrPort) int
}

// Sockets are UDP sockets that another process has opened. Who is given them
// owns the descriptors from then on.
type Sockets struct{ FDs []int }

// close ends the descriptors; nil is none.
func (s *Sockets) close() {
	if s == nil {
		return
	}
	for _, fd := range s.FDs {
		if fd >= 0 {
			_ = syscall.Close(fd) // what cannot be closed is not open
		}
	}
}

// WireGuardConfig says what NewWireGuard shall make.
type WireGuardConfig struct {
	Key        PrivateKey
	ListenPort uint16 // 0: one that is free, see WireGuard.Port
	MTU        int    // of packets inside the tunnel
	Sink       Sink
	Logger     *slog.Logger // nil: silent

	// Sockets are taken over instead of opening new ones on ListenPort; nil: open.
	Sockets *Sockets
	UDP     UDPConfig
	// Wire moves the datagrams instead of UDP sockets; nil: UDP sockets.
	Wire Wire

	// SessionFile is where sessions outlive the process; "": nowhere. It must lie
	// on tmpfs, see Report. Epoch is the kernel's boot id.
	SessionFile string
	Epoch       string
	// SessionMemory is what WireGuard.SessionMemory returned in a former process, for
	// where SessionFile would not lie in memory; nil: there was none. It stays the
	// caller's.
	SessionMemory *os.File

	// PSK is mixed into every handshake, with all peers; nil: none.
	PSK *[32]byte
	// Roaming lets a peer's endpoint follow its authentic packets, as WireGuard
	// does by itself. In a cluster it stays off: see the package comment.
	Roaming bool

	QueueBytes int // of packets that wait for a handshake; 0: 2 MiB
	// Openers are goroutines that help those who read; 0: as the processors allow,
	// negative: none.
	Openers int
}

// Validate reports everything that is wrong with the configuration.
func (c *WireGuardConfig) Validate() error {
	var errs []error
	if c.Key.IsZero() {
		errs = append(errs, errors.New("no private key"))
	}
	if c.MTU < minMTU || c.MTU > maxMTU {
		errs = append(errs, fmt.Errorf("mtu %d is not within %d and %d", c.MTU, minMTU, maxMTU))
	}
	if c.Sink == nil {
		errs = append(errs, errors.New("no sink"))
	}
	if c.QueueBytes != 0 && c.QueueBytes < packet.MaxSize {
		errs = append(errs, fmt.Errorf("queue of %d bytes cannot hold a packet of %d", c.QueueBytes, packet.MaxSize))
	}
	if c.Wire != nil && c.Sockets != nil {
		errs = append(errs, errors.New("both a wire and sockets"))
	}
	return errors.Join(errs...)
}

// WireGuard is the Engine: WireGuard's protocol, run to completion in the
// goroutines of those who send and of one reader per socket.
type WireGuard struct {
	log     *slog.Logger
	self    Key
	cfg     WireGuardConfig
	id      *handshake.Identity
	guard   *handshake.Guard
	limiter *handshake.Limiter
	store   *sessions.Store
	wire    Wire
	sockets *udp.Sockets // what wire is, nil: another one
	queues  int
	port    uint16
	report  string // why sessions were not taken over
	// What the self-test and the settings make of the sockets.
	offloads udp.Offloads
	count    *counters
	clock    clock

	routes  atomic.Pointer[bart.Table[*peer]] // destination -> peer; immutable once stored
	known   atomic.Pointer[map[Key]*peer]     // immutable once stored
	table   []atomic.Pointer[keypair]         // by slot
	senders sync.Pool                         // of *sender
	held    atomic.Int64                      // bytes that wait for handshakes
	narrow  atomic.Int32                      // peers whose way carries less than cfg.MTU

	openers int
	jobs    chan *piece // for openers, nobody waits to be heard

	shakes     chan shake   // handshake messages on their way to the one who computes
	cookies    chan shake   // likewise
	begins     chan *peer   // who wants a handshake; each is in it once
	complained atomic.Int64 // when it was last said that a handshake could not begin
	replies    *handshake.Bucket
	loaded     atomic.Int64 // until when we are under load
	inmu       sync.Mutex
	flying     map[uint32]*peer // our handshakes under way, by index; guarded by inmu

	// gate is held for reading by whoever sends or works on peers, and for writing
	// by who ends that.
	gate     sync.RWMutex
	running  atomic.Bool // Start was called, and Stop not; written under gate
	readers  sync.WaitGroup
	computer sync.WaitGroup
	quit     chan struct{}
	stopping sync.Once

	mu       sync.Mutex
	peers    map[Key]*peer               // guarded by mu
	applied  []Peer                      // sorted by key; guarded by mu
	orphans  map[Key][]resumed           // taken over, their peers not yet applied; guarded by mu
	funeral  *time.Timer                 // ends orphans; guarded by mu
	past     map[Key]handshake.Timestamp // what was heard of peers that were removed; guarded by mu
	staged   []sessions.Session          // imported, for Start; guarded by mu
	exported bool                        // guarded by mu
	first    bool                        // Apply was called; guarded by mu
	served   bool                        // Start was called; guarded by mu
	stage    stage                       // guarded by mu
}

type stage uint8

const (
	stageOpen stage = iota
	stageStarted
	stageStopped
	stageClosed
)

var _ Engine = (*WireGuard)(nil)

// NewWireGuard opens the sockets and the session file, and makes an engine
// without peers. Nothing is read, sent or changed before Start, so another
// process may be at work with the same sockets and file. Close ends it.
func NewWireGuard(cfg WireGuardConfig) (*WireGuard, error) {
	w, err := prepare(cfg)
	if err != nil {
		cfg.Sockets.close()
		return nil, fmt.Errorf("overlay: %w", err)
	}
	if err := w.open(); err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	return w, nil
}

// prepare makes an engine that has opened nothing.
func prepare(cfg WireGuardConfig) (*WireGuard, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.QueueBytes = cmp.Or(cfg.QueueBytes, defaultQueueBytes)
	var psk [32]byte
	if cfg.PSK != nil {
		psk = *cfg.PSK
	}
	id, err := handshake.NewIdentity(cfg.Key.secret, psk)
	if err != nil {
		return nil, err
	}
	w := &WireGuard{
		log: cfg.Logger, self: Key(id.Public()), cfg: cfg, id: id, guard: handshake.NewGuard(id.Public()), limiter: handshake.NewLimiter(),
		count: new(counters), shakes: make(chan shake, maxShakes), cookies: make(chan shake, maxCookies), begins: make(chan *peer, MaxPeers), replies: handshake.NewBucket(repliesPerSecond, replyBurst),
		flying: make(map[uint32]*peer), quit: make(chan struct{}),
		peers: make(map[Key]*peer), orphans: make(map[Key][]resumed), past: make(map[Key]handshake.Timestamp),
	}
	if w.clock, err = newClock(); err != nil {
		return nil, err
	}
	w.routes.Store(new(bart.Table[*peer]))
	w.known.Store(&map[Key]*peer{})
	w.openers, w.jobs = openersFor(cfg.Openers), make(chan *piece)
	w.senders.New = func() any { return newSender() }
	return w, nil
}

// open opens the wire and the store.
func (w *WireGuard) open() error {
	w.wire = w.cfg.Wire
	if w.wire == nil {
		u := &udpWire{log: w.log}
		u.options, w.offloads = udp.Choose(w.cfg.UDP.GSO, w.cfg.UDP.GRO)
		for _, fault := range w.offloads.Faults() {
			w.log.Warn("udp offload is off, which makes the tunnel slower", "reason", fault)
		}
		if w.cfg.Sockets != nil {
			var err error
			if u.Sockets, err = udp.Adopt(w.cfg.Sockets.FDs, u.options); err != nil {
				return err
			}
		}
		w.wire = u
	}
	var err error
	if w.queues, w.port, err = w.wire.Listen(w.cfg.ListenPort); err != nil {
		return fmt.Errorf("listen on port %d: %w", w.cfg.ListenPort, err)
	}
	if u, ok := w.wire.(*udpWire); ok {
		w.sockets = u.Sockets
	}
	if err := w.openStore(); err != nil {
		return errors.Join(err, w.wire.Close())
	}
	w.table = make([]atomic.Pointer[keypair], w.store.Slots())
	if w.report != "" {
		w.log.Warn("overlay sessions not taken over", "file", w.cfg.SessionFile, "reason", w.report)
	}
	return nil
}

// openStore opens the session file. Without one there are handshakes after a
// restart, but never a node without a network.
func (w *WireGuard) openStore() error {
	cfg := sessions.Config{
		Path: w.cfg.SessionFile, Memory: w.cfg.SessionMemory, Epoch: w.cfg.Epoch, Owner: w.self,
		Warn: func(err error) {
			w.log.Warn("overlay sessions not locked in memory", "file", w.cfg.SessionFile, "err", err)
		},
	}
	var err error
	if w.store, err = sessions.Open(cfg); err != nil {
		w.report = err.Error()
		cfg.Path = ""
		w.store, err = sessions.Open(cfg)
		return err
	}
	if r := w.store.Report(); r.Refusal != sessions.NotRefused {
		w.report = r.Refusal.String()
	}
	return nil
}

// SessionMemory returns what the sessions are in where SessionFile would not lie in
// memory, for the process that comes next; nil when they are in that file. It is valid
// until Close.
func (w *WireGuard) SessionMemory() *os.File { return w.store.Memory() }

// Report says what became of the session file: "" when it is used, or why what
// was there is not.
func (w *WireGuard) Report() string { return w.report }

// Start takes the sessions over, begins to read, and shakes hands with every
// peer that has none. Peers should have been applied before: what comes from a
// peer that is not known yet is dropped.
func (w *WireGuard) Start() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stage != stageOpen {
		return fmt.Errorf("overlay: start: %w", ErrClosed)
	}
	if err := w.seize(); err != nil {
		return err
	}
	w.stage, w.served = stageStarted, true
	w.resume()
	w.gate.Lock()
	w.running.Store(true)
	w.gate.Unlock()
	for q := range w.queues {
		w.readers.Go(func() { w.read(q) })
	}
	w.computer.Go(w.compute)
	for range w.openers {
		w.computer.Go(w.help)
	}
	for _, p := range w.peers {
		p.begin()
	}
	return nil
}

// seize takes the session file for this process. Who had it has given it up, or
// has died a moment ago; one that still serves would give out the same slots.
func (w *WireGuard) seize() error {
	deadline := time.Now().Add(seizeFor)
	for {
		err := w.store.Lock()
		if err == nil || !time.Now().Before(deadline) {
			if err != nil {
				err = fmt.Errorf("overlay: start: another process serves with %s: %w", w.cfg.SessionFile, err)
			}
			return err
		}
		<-time.After(seizeAgain)
	}
}

// Stop ends reading and sending for good. The sessions in the file are final
// then, and the sockets stay open until Close.
func (w *WireGuard) Stop() error {
	w.stopping.Do(w.stop)
	return nil
}

func (w *WireGuard) stop() {
	w.mu.Lock()
	started := w.stage == stageStarted
	w.stage = stageStopped
	peers := w.peers // nobody changes them any more
	w.staged = nil
	clear(w.orphans) // their slots are the successor's
	if w.funeral != nil {
		w.funeral.Stop()
	}
	w.mu.Unlock()
	if !started {
		haltAll(peers)
		return
	}
	w.wire.Interrupt()
	w.readers.Wait() // what was read has gone all its way
	w.gate.Lock()    // who sends now, ends
	w.running.Store(false)
	w.gate.Unlock()
	close(w.quit)
	w.computer.Wait()
	haltAll(peers)
	if err := w.store.Unlock(); err != nil {
		w.log.Warn("overlay session file not unlocked", "err", err)
	}
}

func haltAll(peers map[Key]*peer) {
	for _, p := range peers {
		p.halt()
	}
}

// Close implements Engine.
func (w *WireGuard) Close() error {
	err := w.Stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stage == stageClosed {
		return err
	}
	w.stage = stageClosed
	w.gate.Lock() // timers that were about to run have seen that it is over
	defer w.gate.Unlock()
	return errors.Join(err, w.wire.Close(), w.store.Close())
}

// Port returns the UDP port that the engine listens on.
func (w *WireGuard) Port() (uint16, error) { return w.port, nil }

// Sockets returns the descriptors of the UDP sockets, borrowed: they are to be
// duplicated, and valid until Close.
func (w *WireGuard) Sockets() []int {
	if w.sockets == nil {
		return nil
	}
	return w.sockets.FDs()
}

// Counters implements Engine.
func (w *WireGuard) Counters() Counters {
	c := w.count.read()
	if w.sockets != nil {
		c.GSODisabled = w.sockets.Refused()
	}
	return c
}

// enter begins work on peers, ended by leave; false: the engine does not run.
func (w *WireGuard) enter() bool {
	w.gate.RLock()
	if !w.running.Load() {
		w.gate.RUnlock()
		return false
	}
	return true
}

func (w *WireGuard) leave() { w.gate.RUnlock() }

// clock tells the nanoseconds since boot, which sessions are dated in: it means
// the same to the process that takes them over.
type clock struct {
	boot  int64
	start time.Time
}

func newClock() (clock, error) {
	boot, err := sessions.Now()
	return clock{boot: boot, start: time.Now()}, err
}

func (c *clock) now() int64 { return c.boot + int64(time.Since(c.start)) }
