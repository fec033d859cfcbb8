package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/netctl/netctl/cni/queue"
	"github.com/netctl/netctl/cni/wire"
	"github.com/netctl/netctl/internal/kernel"
)

// Bounds of the server.
const (
	// maxConnections bounds the plugins that are connected at once; more wait
	// in the listen queue. One takes three goroutines and a frame.
	maxConnections = 1024
	// maxOperations bounds the ADD, DEL, CHECK and GC in the Backend at once.
	maxOperations = 64
	// requestWait is how long a connected plugin may take to send its request:
	// as long as it lives itself, for a node may be that slow.
	requestWait = 10 * time.Second
	// replyWait is how long it may take to read a reply.
	replyWait = 5 * time.Second
	// ackSlack is added to a plugin's own time limit before its silence means
	// that the result of ADD was not delivered: a plugin never delivers later
	// than its limit, so the server never undoes what was delivered.
	ackSlack = 3 * time.Second
	// ackStopping is how long a stopping server waits for it.
	ackStopping = time.Second
	// undoTime bounds taking back an ADD, and a deletion from the queue.
	undoTime = 20 * time.Second
	// drainEvery is how often the queue of deletions is looked at: a plugin
	// that found the agent too slow has left one there.
	drainEvery = 5 * time.Second
	// gcGrace protects an attachment from a GC whose list may be older.
	gcGrace = time.Minute
)

// Config is what a Server needs.
type Config struct {
	// Socket is an absolute path. Its directory is made if absent and must
	// belong to netctl alone: it becomes 0700. Empty means
	// wire.DefaultSocket.
	Socket  string
	Backend Backend
	Logger  *slog.Logger
	// Adopt is the descriptor of a listening socket that another process has had at
	// Socket, -1 or 0: there is none. The Server owns it.
	Adopt int
	// Stays says, when Run ends, whether the socket's file is to stay, since another
	// process has a copy of the socket, where plugins can wait; nil: it does not.
	Stays func() bool
	// Observe, if set, is told of every operation when it has ended; code is
	// 0 for success. It must not block and is called from many goroutines.
	Observe func(operation string, code uint, took time.Duration)
}

// Validate reports every fault of the configuration, and fills in defaults.
func (c *Config) Validate() error {
	var errs []error
	if c.Socket == "" {
		c.Socket = wire.DefaultSocket
	}
	if !filepath.IsAbs(c.Socket) || len(c.Socket)+len(tempSuffix) > wire.MaxSocketPath {
		errs = append(errs, fmt.Errorf("cni socket %q: want an absolute path of at most %d bytes", c.Socket, wire.MaxSocketPath-len(tempSuffix)))
	}
	if c.Backend == nil {
		errs = append(errs, errors.New("cni server needs a backend"))
	}
	if c.Logger == nil {
		errs = append(errs, errors.New("cni server needs a logger"))
	}
	if c.Stays == nil {
		c.Stays = func() bool { return false }
	}
	if c.Observe == nil {
		c.Observe = func(string, uint, time.Duration) {}
	}
	return errors.Join(errs...)
}

// Server answers the plugin. Its life has two phases:
//
//	        Run                    Restored, queue drained
//	new ---------> restoring ------------------------------> serving
//
//	restoring   ADD, CHECK, GC: try again; DEL: queued; STATUS: try again,
//	            which the plugin turns into its grace
//	serving     everything
type Server struct {
	cfg   Config       // immutable
	queue *queue.Queue // immutable

	restored     chan struct{} // closed by Restored
	restoredOnce sync.Once
	serving      chan struct{} // closed by Run once the queue is drained

	containers keyLock
	operations chan struct{} // a slot per operation in the Backend
	status     chan struct{} // a slot for one STATUS in the Backend
	recent     recent

	listener *listener // set by Listen
	quiet    chan struct{}
	quieten  sync.Once
	ended    chan struct{} // closed when Run has ended
}

// NewServer returns a Server that touches nothing before Run.
func NewServer(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Server{
		cfg:        cfg,
		queue:      queue.Beside(cfg.Socket),
		restored:   make(chan struct{}),
		serving:    make(chan struct{}),
		operations: make(chan struct{}, maxOperations),
		status:     make(chan struct{}, 1),
		quiet:      make(chan struct{}),
		ended:      make(chan struct{}),
	}, nil
}

// Restored tells the server that the agent has adopted the ports that exist,
// so that additions may begin. It may be called before Run, and again.
func (s *Server) Restored() { s.restoredOnce.Do(func() { close(s.restored) }) }

// Serving is closed once additions are answered: the moment to install the
// network configuration.
func (s *Server) Serving() <-chan struct{} { return s.serving }

// Listen makes the socket, or adopts the one that it was given: plugins that connect
// wait from here on. Run does it where nobody did.
func (s *Server) Listen() error {
	if s.cfg.Adopt > 0 {
		if s.listener = adopt(s.cfg.Socket, s.cfg.Adopt); s.listener != nil {
			return nil
		}
	}
	var err error
	s.listener, err = listen(s.cfg.Socket)
	return err
}

// Socket returns a copy of the listening socket's descriptor, which is the caller's,
// after Listen.
func (s *Server) Socket() (int, error) { return kernel.DupOf(s.listener) }

// Quiesce has Run take no more calls, finish those that it has, and end, and returns
// when it has ended: for another process that has a copy of the socket, where plugins
// wait meanwhile. Calls that are not finished when the context ends are cancelled.
func (s *Server) Quiesce(ctx context.Context) {
	s.quieten.Do(func() { close(s.quiet) })
	select {
	case <-s.ended:
	case <-ctx.Done():
	}
}

// Run listens and answers until the context ends, then cancels the operations
// under way and waits for them. The socket replaces one that is there, without
// a moment in which there is none. A Server runs once.
func (s *Server) Run(ctx context.Context) error {
	defer close(s.ended)
	if s.listener == nil {
		if err := s.Listen(); err != nil {
			return err
		}
	}
	l := s.listener
	defer func() { l.close(s.isQuiet() || s.cfg.Stays()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, l.interrupt)
	defer stop()

	var wg, calls sync.WaitGroup
	defer wg.Wait()
	defer cancel() // before the wait
	wg.Go(func() { s.drain(ctx) })
	wg.Go(func() {
		select {
		case <-s.quiet:
			l.interrupt()
		case <-ctx.Done():
		}
	})
	defer calls.Wait() // without cancelling them, when quiet

	slots := make(chan struct{}, maxConnections)
	for {
		select {
		case slots <- struct{}{}:
		case <-s.quiet:
			return nil
		case <-ctx.Done():
			return nil
		}
		conn, err := l.accept()
		if err != nil {
			<-slots
			if ctx.Err() != nil || s.isQuiet() {
				return nil
			}
			if !s.pause(ctx, err) {
				return fmt.Errorf("accept cni connection: %w", err)
			}
			continue
		}
		calls.Go(func() {
			defer func() { <-slots }()
			s.handle(ctx, conn)
		})
	}
}

// isQuiet reports whether no more calls are taken.
func (s *Server) isQuiet() bool {
	select {
	case <-s.quiet:
		return true
	default:
		return false
	}
}

// pause waits a little after an error that may pass, such as too many open
// files, and reports whether to go on.
func (s *Server) pause(ctx context.Context, err error) bool {
	if errors.Is(err, net.ErrClosed) {
		return false
	}
	s.cfg.Logger.Error("cni connection not accepted", "err", err)
	select {
	case <-time.After(100 * time.Millisecond):
	case <-ctx.Done():
	}
	return true
}

// isServing reports the phase.
func (s *Server) isServing() bool {
	select {
	case <-s.serving:
		return true
	default:
		return false
	}
}

// drain carries out the queued deletions: all of them once the agent has
// restored its state and before additions are served, then whenever a plugin
// has left one. One that fails stays and is tried again; meanwhile its
// container cannot be added (settle).
func (s *Server) drain(ctx context.Context) {
	select {
	case <-s.restored:
	case <-ctx.Done():
		return
	}
	s.drainOnce(ctx)
	close(s.serving)
	ticker := time.NewTicker(drainEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s.drainOnce(ctx)
		case <-ctx.Done():
			return
		}
	}
}

func (s *Server) drainOnce(ctx context.Context) {
	if lost, err := s.queue.TakeLost(); err != nil {
		s.cfg.Logger.Error("deletion queue not readable", "err", err)
	} else if lost > 0 {
		s.cfg.Logger.Warn("deletions were lost because the queue was full; garbage collection will find their pods", "count", lost)
	}
	entries, err := s.queue.List()
	if err != nil {
		s.cfg.Logger.Error("deletion queue not readable", "err", err)
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, e := range entries { // at most queue.Max
		wg.Go(func() {
			if err := s.drainEntry(ctx, ID(e)); err != nil {
				s.cfg.Logger.Warn("queued deletion failed, will be tried again", "container", e.ContainerID, "interface", e.IfName, "err", err)
			}
		})
	}
}

func (s *Server) drainEntry(ctx context.Context, id ID) error {
	ctx, cancel := context.WithTimeout(ctx, undoTime)
	defer cancel()
	unlock, err := s.containers.lock(ctx, id.ContainerID)
	if err != nil {
		return err
	}
	defer unlock()
	return s.settle(ctx, id)
}

// settle carries out a queued deletion, if there is one. The caller holds the
// container's lock, so no addition can come between the deletion and the
// removal of its record.
func (s *Server) settle(ctx context.Context, id ID) error {
	if !s.queue.Has(queue.Entry(id)) {
		return nil
	}
	if err := s.backendDel(ctx, id); err != nil {
		return err
	}
	if err := s.queue.Remove(queue.Entry(id)); err != nil {
		return err
	}
	s.cfg.Logger.Info("queued deletion done", "container", id.ContainerID, "interface", id.IfName)
	return nil
}

// postpone puts a deletion that cannot be carried out now on disk. A full
// queue is logged and counted as success, as in the plugin.
func (s *Server) postpone(id ID, why error) error {
	err := s.queue.Push(queue.Entry(id), time.Now().Add(time.Second))
	if errors.Is(err, queue.ErrFull) {
		s.cfg.Logger.Error("deletion lost, the queue is full; garbage collection will find it", "container", id.ContainerID, "interface", id.IfName, "err", err)
		return nil
	}
	if err != nil {
		return errors.Join(err, why)
	}
	s.cfg.Logger.Warn("deletion queued", "container", id.ContainerID, "interface", id.IfName, "err", why)
	return nil
}

// ownUser is who may ask: the agent's own user, root or not.
func ownUser() uint32 { return uint32(os.Geteuid()) }
