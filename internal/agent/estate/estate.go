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
	"maps"
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
	// Memory is what the tunnel's sessions are in where no directory lies in memory.
	Memory = "sessions"
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

const (
	// checkInterval is how often the holder is looked after.
	checkInterval = 2 * time.Second
	// beatInterval is how often it hears that this process lives.
	beatInterval = 500 * time.Millisecond
)

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

// Keeps reports whether the holder keeps what this agent has beyond its end.
func (c *Custodian) Keeps() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.client != nil && c.owner
}

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
	if isRefused(err) || errors.Is(err, holder.ErrIncomplete) {
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
		maps.Copy(found, held)
	}
	c.mu.Unlock()
	var others []*holder.Client
	for _, client := range c.others(ctx, dir) {
		held, err := client.All()
		if err != nil {
			c.log.Warn("another holder does not return all that it has", "at", client.Path(), "error", err)
		}
		if err == nil && len(held) == 0 {
			_ = client.Close()
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
			c.relieve(o)
		}
	}
}

// relieve has another holder let go of what it has, and closes the connection.
func (c *Custodian) relieve(o *holder.Client) {
	err := errors.Join(o.Own(), o.Goodbye())
	_ = o.Close()
	if err == nil {
		return
	}
	// The connection may have failed before, and the holder be well.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	again, err := holder.Dial(ctx, o.Path())
	if err == nil {
		err = errors.Join(again.Own(), again.Goodbye(), again.Close())
	}
	if err != nil {
		c.log.Warn("another holder keeps what it has", "at", o.Path(), "error", err)
	}
}

// Free has the own holder and those in dir close all that they have, of which this
// agent could not get its copy: a device that another process has open cannot be
// attached to.
func (c *Custodian) Free(ctx context.Context, dir string) {
	c.mu.Lock()
	if client := c.connect(); client != nil {
		c.failed("let go", errors.Join(client.Own(), client.Goodbye()))
	}
	own := c.client != nil
	c.mu.Unlock()
	others := c.others(ctx, dir)
	if !own && c.path != "" { // it may be only the connection that is gone
		if client, err := holder.Dial(ctx, c.path); err == nil {
			others = append(others, client)
		}
	}
	for _, o := range others {
		c.relieve(o)
	}
}

// others connects to the holders in dir but the own one. A dead one's socket goes.
func (c *Custodian) others(ctx context.Context, dir string) []*holder.Client {
	own, ownErr := os.Stat(c.path)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Warn("other holders not found", "error", err)
	}
	var out []*holder.Client
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		info, err := os.Stat(path)
		if err != nil || ownErr == nil && os.SameFile(own, info) || !strings.HasSuffix(e.Name(), ".sock") {
			continue
		}
		client, err := dial(ctx, path)
		if err == nil {
			out = append(out, client)
		}
	}
	return out
}

// A socket at which nobody listens is a dead holder's when it is that old, and else
// perhaps one that is just being made.
const deadAge = 10 * time.Second

// dialTime bounds the wait for one holder, which may hang.
const dialTime = time.Second

// dial connects to a holder that may be dead: then its socket goes.
func dial(ctx context.Context, path string) (*holder.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	client, err := holder.Dial(ctx, path)
	if errors.Is(err, syscall.ECONNREFUSED) {
		if info, serr := os.Lstat(path); serr == nil && time.Since(info.ModTime()) > deadAge {
			_ = os.Remove(path)
		}
	}
	return client, err
}

// Sweep removes the sockets of dead holders from dir.
func (c *Custodian) Sweep(ctx context.Context, dir string) {
	for _, o := range c.others(ctx, dir) {
		_ = o.Close()
	}
}

// Watched reports whether a holder in dir lives, which starts an agent when there is
// none.
func Watched(dir string) bool {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false // there is no such directory
	}
	for _, e := range entries {
		if client, err := dial(context.Background(), filepath.Join(dir, e.Name())); err == nil {
			_ = client.Close()
			return true
		}
	}
	return false
}

// Claim makes this agent the one whose death counts. What its predecessor had kept
// stays until Own, and the predecessor's Goodbye does not end it.
func (c *Custodian) Claim() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.owner = true
	if client := c.connect(); client != nil {
		c.failed("have it for owner", client.Own())
	}
}

// Own gives the holder copies of everything, and makes this agent the one whose
// death counts. What all returns is borrowed until the function beside it is called;
// nothing is put or dropped meanwhile, so that what is given is what there is.
func (c *Custodian) Own(all func() (Estate, func())) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.owner = true
	everything, done := all()
	defer done()
	c.giveAll(everything)
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
// borrowed until the next call. The holder hears nothing while alive returns an error,
// so that it ends an agent that does not go on.
func (c *Custodian) Keep(ctx context.Context, all func() (Estate, func()), alive func() error) error {
	ticker := time.NewTicker(checkInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := alive(); err != nil {
			c.log.Error("the holder is not told that this agent is well", "error", err)
			continue
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

// Beat has the holder hear that this process lives, until the context ends, which is
// to be the process' end. It hears nothing while alive returns an error.
func (c *Custodian) Beat(ctx context.Context, alive func() error) {
	ticker := time.NewTicker(beatInterval)
	defer ticker.Stop()
	var deaf *holder.Client // it looks after another agent by now, or is older than beats are
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if alive() != nil {
			continue // Keep says so
		}
		c.mu.Lock()
		if c.client != nil && c.client != deaf && c.owner {
			if err := c.client.Beat(); isRefused(err) {
				deaf = c.client
			} else {
				c.failed("hear that this agent lives", err)
			}
		}
		c.mu.Unlock()
	}
}

func isRefused(err error) bool {
	_, refused := errors.AsType[*holder.RefusedError](err)
	return refused
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

// Replace has the holder start an agent that takes over from this one, which is about
// to end.
func (c *Custodian) Replace() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client == nil || !c.owner {
		return errors.New("this agent has no holder")
	}
	err := c.client.Replace()
	c.failed("start another agent", err)
	return err
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
