package kernel

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Offloads says which work the kernel leaves to a TUN's reader. Wanted in a
// TUNConfig, granted in TUN.Offloads: what is not wanted is off, and what the
// kernel does not know is not granted.
type Offloads struct {
	Checksum bool // packets may come with NEEDS_CSUM
	TSO      bool // TCP super-packets up to 64 KiB, both families; needs Checksum
	USO      bool // UDP super-packets, Linux 6.2 and later; needs Checksum
}

// AllOffloads is what netctl wants of every TUN.
func AllOffloads() Offloads { return Offloads{Checksum: true, TSO: true, USO: true} }

// flags is the argument of TUNSETOFFLOAD.
func (o Offloads) flags() int {
	f := 0
	if o.Checksum {
		f |= unix.TUN_F_CSUM
		if o.TSO {
			f |= unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
		}
		if o.USO {
			f |= unix.TUN_F_USO4 | unix.TUN_F_USO6
		}
	}
	return f
}

// TUNConfig describes a TUN to create. The zero value makes a device with a
// name of the kernel's choice, its default MTU and queue, and no offloads.
type TUNConfig struct {
	// Name may contain one %d, for which the kernel puts the first free
	// number; "" is "tun%d".
	Name string
	// MTU is the device's, 0 for the kernel's 1500.
	MTU int
	// TxQueueLen is how many packets wait for a reader, 0 for the kernel's
	// 500.
	TxQueueLen int
	// GSOMaxSize bounds super-packets in bytes, 0 for the kernel's 65536.
	GSOMaxSize int
	// Offloads is what is wanted; see TUN.Offloads for what was granted.
	Offloads Offloads
	// Persist keeps the device when its last descriptor closes. For pods
	// leave it off here and set it in Interface, so that an ADD that is
	// killed in the middle leaves nothing behind.
	Persist bool
}

// TUN is a TUN device that this process holds the descriptor of: IFF_TUN,
// IFF_NO_PI, IFF_VNET_HDR, one queue, non-blocking. Each packet read or written
// is a virtio-net header (VNetLen bytes, little endian) and an IP packet.
//
// Read and Write may be called from any goroutines at the same time. All other
// methods belong to one owner.
type TUN struct {
	fd       int // immutable: stays reserved until the TUN is garbage
	name     string
	index    int
	offloads Offloads
	persist  bool
	pins     bool
	closed   bool
}

// CreateTUN makes a TUN device in the caller's namespace; MoveInto takes it to
// another. Opened here and moved, its descriptor does not keep the pod's
// namespace alive. The error wraps ErrExists when the name is taken.
func CreateTUN(cfg TUNConfig) (*TUN, error) {
	t, err := openTUN(cfg.Name, unix.IFF_TUN_EXCL)
	if errors.Is(err, ErrBusy) {
		err = ErrExists // what the kernel says of a name that is taken
	}
	if err != nil {
		return nil, fmt.Errorf("create TUN %q: %w", cfg.Name, err)
	}
	if err := t.setUp(cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("create TUN %q: %w", cfg.Name, err), t.Destroy())
	}
	return t, nil
}

func (t *TUN) setUp(cfg TUNConfig) error {
	if _, err := t.SetOffloads(cfg.Offloads); err != nil {
		return err
	}
	limits := &Interface{MTU: cfg.MTU, TxQueueLen: cfg.TxQueueLen, GSOMaxSize: cfg.GSOMaxSize}
	if err := setLimits(linkByIndex(t.index), limits); err != nil {
		return err
	}
	if cfg.Persist {
		return t.SetPersist()
	}
	return nil
}

// AttachTUN takes hold again of a persistent TUN whose descriptor was closed,
// from inside its namespace. It never creates a device: name must be the TUN
// with that index before and after. The error wraps ErrNotFound, ErrChanged or
// ErrBusy. The descriptor keeps the namespace alive (see PinsNamespace).
func AttachTUN(ns *Namespace, name string, index int) (*TUN, error) {
	var t *TUN
	err := ns.Do(func() error {
		if err := checkTUN(name, index); err != nil {
			return err
		}
		var err error
		if t, err = openTUN(name, 0); err != nil {
			return err
		}
		if t.index != index {
			// Deleted between the check and the attach, so that the
			// kernel made a new one. It ends with its descriptor.
			return errors.Join(ErrChanged, t.Close())
		}
		t.persist = true
		t.offloads, err = activeOffloads(name)
		if err != nil {
			return errors.Join(err, t.Close())
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("attach to TUN %q: %w", name, err)
	}
	return t, nil
}

// AdoptTUN takes over the descriptor of a TUN that another process opened, with
// nothing of the device touched: its carrier does not move. The device must be the
// one with that name in the namespace with that inode, 0 for the caller's own, and
// is believed to have that index. The descriptor is the TUN's from then on, also
// when it is refused: then it is closed. The error wraps ErrGone when its device was
// deleted, and ErrChanged when it is another one.
func AdoptTUN(fd int, name string, index int, netns uint64) (*TUN, error) {
	t := &TUN{fd: fd, name: name, index: index, persist: true}
	err := t.inspect(netns)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("adopt TUN %q: %w", name, err)
	}
	t.reserve()
	return t, nil
}

// inspect makes sure that a descriptor is what its owner was told.
func (t *TUN) inspect(netns uint64) error {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(t.fd, unix.TUNGETIFF, ifr); err != nil {
		return fmt.Errorf("ask for its device: %w", tunErr(err))
	}
	if flags := ifr.Uint16(); ifr.Name() != t.name || flags&unix.IFF_TUN == 0 || flags&unix.IFF_NO_PI == 0 || flags&unix.IFF_VNET_HDR == 0 {
		return fmt.Errorf("it is %q with flags %#x: %w", ifr.Name(), flags, ErrChanged)
	}
	at, err := t.Namespace()
	if err != nil {
		return err
	}
	defer at.Close()
	if netns == 0 {
		here, err := CurrentNamespace()
		if err != nil {
			return err
		}
		_, netns = here.Inode()
		here.Close()
	}
	if at.ino != netns {
		return fmt.Errorf("it is in namespace %d instead of %d: %w", at.ino, netns, ErrChanged)
	}
	return t.findPin(at)
}

func checkTUN(name string, index int) error {
	link, err := linkByName(name)
	if err != nil {
		return err
	}
	if link.Attrs().Index != index || link.Type() != "tuntap" && link.Type() != "tun" {
		return fmt.Errorf("%s %q with index %d instead of %d: %w", link.Type(), name, link.Attrs().Index, index, ErrChanged)
	}
	return nil
}

// openTUN opens /dev/net/tun and binds it to a device of the thread's
// namespace.
func openTUN(name string, extra uint16) (*TUN, error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return nil, fmt.Errorf("bad interface name: %w", err)
	}
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", tunPath, err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | extra)
	index := 0
	err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	if err == nil {
		index, err = setHeader(fd, ifr.Name())
	}
	if err != nil {
		unix.Close(fd)
		return nil, tunErr(err)
	}
	t := &TUN{fd: fd, name: ifr.Name(), index: index, pins: true}
	t.reserve()
	return t, nil
}

// setHeader fixes the virtio-net header's size and byte order and returns the
// device's index.
func setHeader(fd int, name string) (int, error) {
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, VNetLen); err != nil {
		return 0, fmt.Errorf("set header size: %w", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETLE, 1); err != nil {
		return 0, fmt.Errorf("set header byte order: %w", err)
	}
	link, err := linkByName(name)
	if err != nil {
		return 0, err
	}
	return link.Attrs().Index, nil
}

// reserve closes the descriptor's number when nobody can use the TUN any more.
func (t *TUN) reserve() {
	runtime.AddCleanup(t, func(fd int) { unix.Close(fd) }, t.fd)
}

// FD returns the descriptor, for a Poller. It is borrowed: valid while the TUN
// is reachable.
func (t *TUN) FD() int { return t.fd }

// Name returns the device's name in the namespace it is in.
func (t *TUN) Name() string { return t.name }

// Index returns the device's interface index in the namespace it is in.
func (t *TUN) Index() int { return t.index }

// Offloads returns what the kernel granted.
func (t *TUN) Offloads() Offloads { return t.offloads }

// PinsNamespace reports whether the open descriptor keeps the device's
// namespace alive, because it was opened in that namespace: so it is after
// AttachTUN, and of a device that never moved, such as netctl0. A pod's TUN
// that pins must be closed when the pod is gone, for nothing else will end it.
func (t *TUN) PinsNamespace() bool { return t.pins }

// findPin compares the namespace in which the descriptor was opened with the
// one that the device is in.
func (t *TUN) findPin(device *Namespace) error {
	fd, err := unix.IoctlRetInt(t.fd, unix.SIOCGSKNS)
	if err != nil {
		return fmt.Errorf("find the descriptor's namespace: %w", tunErr(err))
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	unix.Close(fd)
	if err != nil {
		return fmt.Errorf("find the descriptor's namespace: %w", err)
	}
	t.pins = st.Dev == device.dev && st.Ino == device.ino
	return nil
}

// Namespace opens the namespace that the device is in.
func (t *TUN) Namespace() (*Namespace, error) {
	fd, err := unix.IoctlRetInt(t.fd, unix.TUNGETDEVNETNS)
	if err != nil {
		return nil, fmt.Errorf("find the TUN's namespace: %w", tunErr(err))
	}
	ns, err := NamespaceFromFD(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return ns, nil
}

// SetOffloads switches offloads on and off. It tries what is wanted, then the
// same without USO, then without TSO, and returns what the kernel took.
func (t *TUN) SetOffloads(want Offloads) (Offloads, error) {
	want.TSO = want.TSO && want.Checksum
	want.USO = want.USO && want.Checksum
	tries := []Offloads{want, {Checksum: want.Checksum, TSO: want.TSO}, {Checksum: want.Checksum}, {}}
	var err error
	for _, o := range tries {
		if err = unix.IoctlSetInt(t.fd, unix.TUNSETOFFLOAD, o.flags()); err == nil {
			t.offloads = o
			return o, nil
		}
	}
	return Offloads{}, fmt.Errorf("set offloads: %w", tunErr(err))
}

// SetPersist makes the device outlive its last descriptor.
func (t *TUN) SetPersist() error {
	if err := unix.IoctlSetInt(t.fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("make TUN persistent: %w", tunErr(err))
	}
	t.persist = true
	return nil
}

// Destroy removes the device, wherever it is, and closes the TUN. When another
// process holds a copy of the descriptor, the device goes with that.
// It succeeds when the device is gone already.
func (t *TUN) Destroy() error {
	if t.closed {
		return nil
	}
	err := unix.IoctlSetInt(t.fd, unix.TUNSETPERSIST, 0)
	if err = tunErr(err); errors.Is(err, ErrGone) {
		err = nil
	}
	return errors.Join(err, t.Close())
}
