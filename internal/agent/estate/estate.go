// Package estate is what one agent's process leaves to the next: descriptors under
// names. They come from the agent before, which hands them over, or from the holder
// that kept copies while there was no agent.
//
// Tests hold and lose a holder.
package estate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/internal/holder"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/model"
)

// The names of what every node has.
const (
	HostTUN = "netctl0"
	Tunnel  = "wireguard" // its UDP sockets
	CNI     = "cni.sock"
	// Drain is one end of a connection, for connections that end in sockets.
	Drain = "drain"
)

// What a process of another version is given in words for all, as files in memory.
const (
	Flows      = "export/flows"
	Affinities = "export/affinities"
	Sessions   = "export/sessions"
)

// HoldersDir is the directory of the holders' sockets in a state directory.
const HoldersDir = "holders"

// Pod is the name of an attachment's TUN.
func Pod(id cni.ID) string { return "pod/" + id.ContainerID + "@" + id.IfName }

const (
	listener = "listen/"
	outside  = "outside/"
)

// Outside is the name of a group of the sockets of packets to the outside.
func Outside(group int) string { return outside + strconv.Itoa(group) }

// TakeOutside takes all those sockets, which are the caller's.
func (e Estate) TakeOutside() []int {
	var fds []int
	for name := range e {
		if strings.HasPrefix(name, outside) {
			fds = append(fds, e.Take(name)...)
		}
	}
	return fds
}

// Listener is the name of a listening socket.
func Listener(at netip.AddrPort, proto model.Protocol) string {
	return listener + strconv.Itoa(int(proto)) + "/" + at.String()
}

// IsListener reports whether a name is that of a listening socket.
func IsListener(name string) bool { return strings.HasPrefix(name, listener) }

// Listeners takes the listening sockets, which are the caller's.
func (e Estate) Listeners(found func(at netip.AddrPort, proto model.Protocol, fd int)) {
	for name := range e {
		text, ok := strings.CutPrefix(name, listener)
		if !ok {
			continue
		}
		number, where, _ := strings.Cut(text, "/")
		proto, err := strconv.ParseUint(number, 10, 8)
		at, aerr := netip.ParseAddrPort(where)
		if err != nil || aerr != nil {
			continue // closed with the rest
		}
		if fd, ok := e.TakeOne(name); ok {
			found(at, model.Protocol(proto), fd)
		}
	}
}

// Estate is descriptors by name. They are its owner's to close.
type Estate map[string][]int

// Take returns what is under a name, nil when there is nothing; it is the caller's.
func (e Estate) Take(name string) []int {
	fds := e[name]
	delete(e, name)
	return fds
}

// TakeOne is Take of what is one descriptor.
func (e Estate) TakeOne(name string) (fd int, ok bool) {
	fds := e.Take(name)
	if len(fds) != 1 {
		kernel.CloseFDs(fds)
		return -1, false
	}
	return fds[0], true
}

// Copy returns copies of all.
func (e Estate) Copy() (Estate, error) {
	out := make(Estate, len(e))
	for name, fds := range e {
		for _, fd := range fds {
			dup, err := kernel.DupFD(fd)
			if err != nil {
				out.Close()
				return nil, err
			}
			out[name] = append(out[name], dup)
		}
	}
	return out, nil
}

// Close closes what is left.
func (e Estate) Close() {
	for name, fds := range e {
		kernel.CloseFDs(fds)
		delete(e, name)
	}
}

// checkInterval is how often the holder is looked after.
const checkInterval = 2 * time.Second

// Custodian has a holder keep copies of what an agent has. Without a holder it does
// nothing. That a holder fails is logged, and it is tried again: an agent serves
// without one no worse than before there were holders.
type Custodian struct {
	path string // of the holder's socket; "": it is inherited, or there is none
	own  bool   // this process is the holder's child
	log  *slog.Logger

	mu     sync.Mutex
	client *holder.Client // guarded by mu: nil while there is none
	owner  bool           // guarded by mu
}

// NewCustodian returns the Custodian of a process that was started by a holder, or
// has one at path, or neither.
func NewCustodian(path string, log *slog.Logger) (*Custodian, error) {
	client, err := holder.Inherited()
	if err != nil {
		return nil, err
	}
	c := &Custodian{path: path, own: client != nil, client: client, log: log}
	if c.own {
		c.path = client.Path() // of the same holder, whatever was said
	}
	return c, nil
}

// Child reports whether a holder started this process.
func (c *Custodian) Child() bool { return c.own }

// connect returns the client, nil without one; mu is held.
func (c *Custodian) connect() *holder.Client {
	if c.again() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		client, err := holder.Dial(ctx, c.path)
		if err != nil {
			c.log.Debug("no holder", "error", err)
			return nil
		}
		c.client = client
	}
	return c.client
}

// again reports whether a connection may be made that was lost.
func (c *Custodian) again() bool { return c.client == nil && c.path != "" && !c.own }

// failed gives up a connection that is of no use; mu is held.
func (c *Custodian) failed(what string, err error) {
	if err == nil {
		return
	}
	c.log.Warn("holder does not keep this agent's descriptors", "doing", what, "error", err)
	if _, refused := errors.AsType[*holder.RefusedError](err); refused {
		return
	}
	_ = c.client.Close()
	c.client = nil
	if c.own {
		c.log.Error("the holder that started this agent is gone: nobody starts another one when this one dies")
	}
}

// Found returns copies of what the own holder and the others in dir have. Relieve
// has the others let go of theirs, once the agent has all that it needs.
func (c *Custodian) Found(ctx context.Context, dir string) (found Estate, relieve func()) {
	found = make(Estate)
	c.mu.Lock()
	if client := c.connect(); client != nil {
		held, err := client.All()
		c.failed("return them", err)
		if err == nil {
			found = held
		}
	}
	c.mu.Unlock()
	var others []*holder.Client
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Warn("other holders not found", "error", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if path == c.path || !strings.HasSuffix(e.Name(), ".sock") {
			continue
		}
		client, held := look(ctx, path)
		if client == nil {
			continue
		}
		for name, fds := range held {
			if found[name] != nil {
				kernel.CloseFDs(fds)
				continue
			}
			found[name] = fds
		}
		others = append(others, client)
	}
	return found, func() {
		for _, o := range others {
			if err := errors.Join(o.Own(), o.Goodbye(), o.Close()); err != nil {
				c.log.Warn("another holder keeps what it has", "error", err)
			}
		}
	}
}

// look returns a holder that has something, and copies of that. A dead one's socket
// goes.
func look(ctx context.Context, path string) (*holder.Client, map[string][]int) {
	client, err := holder.Dial(ctx, path)
	if errors.Is(err, syscall.ECONNREFUSED) {
		_ = os.Remove(path)
	}
	if err != nil {
		return nil, nil
	}
	held, err := client.All()
	if err != nil || len(held) == 0 {
		_ = client.Close()
		return nil, nil
	}
	return client, held
}

// Watched reports whether a holder in dir lives, which starts an agent when there is
// none.
func Watched(dir string) bool {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false // there is no such directory
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for _, e := range entries {
		if client, err := holder.Dial(ctx, filepath.Join(dir, e.Name())); err == nil {
			_ = client.Close()
			return true
		}
	}
	return false
}

// Own gives the holder copies of everything, and makes this agent the one whose
// death counts.
func (c *Custodian) Own(all Estate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.owner = true
	c.giveAll(all)
}

// giveAll is with mu held.
func (c *Custodian) giveAll(all Estate) {
	client := c.connect()
	if client == nil {
		return
	}
	err := client.Own()
	for name, fds := range all {
		if err == nil {
			err = client.Put(name, fds...)
		}
	}
	if err == nil {
		err = client.Settled()
	}
	c.failed("keep them", err)
}

// Keep looks after the holder until the context ends: one that was started anew is
// given everything again. all is called from its goroutine and returns what is
// borrowed until the next call.
func (c *Custodian) Keep(ctx context.Context, all func() (Estate, func())) error {
	ticker := time.NewTicker(checkInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		c.mu.Lock()
		lost := c.client == nil
		if c.client != nil {
			err := c.client.Drop("nothing")
			lost = err != nil
			c.failed("answer", err)
		}
		if lost && (c.client != nil || c.again()) {
			everything, done := all()
			c.giveAll(everything)
			done()
		}
		c.mu.Unlock()
	}
}

// Put has a copy kept.
func (c *Custodian) Put(name string, fds ...int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client != nil {
		c.failed("keep "+name, c.client.Put(name, fds...))
	}
}

// Drop has no copy kept, and returns when there is none.
func (c *Custodian) Drop(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client != nil {
		c.failed("drop "+name, c.client.Drop(name))
	}
}

// Goodbye has nothing kept, and nobody stand in for this agent.
func (c *Custodian) Goodbye() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client != nil && c.owner {
		c.failed("let go", c.client.Goodbye())
	}
	c.owner = false
}

// String says what there is, for people.
func (e Estate) String() string {
	n := 0
	for _, fds := range e {
		n += len(fds)
	}
	return fmt.Sprintf("%d descriptors under %d names", n, len(e))
}
