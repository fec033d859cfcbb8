// Package statefile keeps the last State of a source in a file, for an agent
// that starts while no API server answers, or after one that died.
//
// The file is replaced as a whole, readable by its owner only, and never the
// only copy of anything: one that is damaged, too large, of another version or
// not what a source makes is an error of Read, and the reader goes on without
// it. It is meant for a file system in memory (/run), so it is compact and not
// forced to a disk.
//
//	magic and version | gob of Content, deflated | CRC-32C of all before
//
// # How old it is
//
// Its time of modification says until when its content was the newest: whoever
// keeps it calls Touch while nothing changes. The content itself is older than
// what its writer knew by the time between two writes, which follows from what
// one costs (package cluster): a tenth of a second in a small cluster, 3 seconds
// with 5000 services and 50 000 endpoints, whose file has 0.5 MB, takes 50 ms to
// write and 40 ms to read.
//
// Tests: round trips, every kind of damage, and a fuzz target of the decoder.
package statefile

import (
	"bufio"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/netctl/netctl/internal/model"
)

const (
	// magic ends in the version of the content: raise it when a field's meaning
	// changes. A new field that may be missing needs no new version.
	magic = "netctl state 1\n"
	// MaxFile and maxContent bound what is read: the file, and what it unpacks
	// to. A cluster of 5000 services and 50 000 endpoints needs a hundredth.
	maxFile    = 256 << 20
	maxContent = 1 << 30
	sumSize    = 4
)

// Content is what the file holds.
type Content struct {
	// Cluster is the identity of the cluster that the rest is of: a node may be
	// given to another one while the file stays.
	Cluster  string
	State    *model.State
	Settings *Settings // nil: never read
}

// Settings are the cluster's own settings, as kubeadm leaves them in the API.
type Settings struct {
	PodSubnets     []netip.Prefix // empty: the cluster has no pod range of its own
	ServiceSubnets []netip.Prefix
	DNSDomain      string
	ClusterDNS     []netip.Addr // where the kubelets send pods
}

// Equal reports whether two say the same.
func (s *Settings) Equal(o *Settings) bool {
	return slices.Equal(s.PodSubnets, o.PodSubnets) && slices.Equal(s.ServiceSubnets, o.ServiceSubnets) &&
		s.DNSDomain == o.DNSDomain && slices.Equal(s.ClusterDNS, o.ClusterDNS)
}

// leftover is the age at which a file that Write was interrupted at is deleted.
const leftover = time.Minute

// Write replaces the file.
func Write(path string, c *Content) (err error) {
	temporary := "." + filepath.Base(path) + ".*"
	if old, err := filepath.Glob(filepath.Join(filepath.Dir(path), temporary)); err == nil {
		for _, name := range old {
			if age, err := Age(name); err == nil && age > leftover {
				_ = os.Remove(name) // it costs memory and nothing else
			}
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), temporary) // mode 0600
	if err != nil {
		return fmt.Errorf("keep the state: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("keep the state: %w", errors.Join(err, os.Remove(f.Name())))
		}
	}()
	err = errors.Join(encode(f, c), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// encode writes the file's bytes.
func encode(w io.Writer, c *Content) error {
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	buf := bufio.NewWriter(w)
	all := io.MultiWriter(buf, sum)
	if _, err := io.WriteString(all, magic); err != nil {
		return err
	}
	packed, err := flate.NewWriter(all, flate.BestSpeed)
	if err != nil {
		return err
	}
	if err := gob.NewEncoder(packed).Encode(c); err != nil {
		return err
	}
	if err := packed.Close(); err != nil {
		return err
	}
	return errors.Join(trailer(buf, sum), buf.Flush())
}

func trailer(w io.Writer, sum hash.Hash32) error {
	return binary.Write(w, binary.BigEndian, sum.Sum32())
}

// Touch says that the content of the file is the newest still.
func Touch(path string) error {
	now := time.Now()
	return os.Chtimes(path, now, now)
}

// Age returns for how long nobody has said that the content is the newest.
func Age(path string) (time.Duration, error) {
	st, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return time.Since(st.ModTime()), nil
}

// Read reads the file. That it does not exist is fs.ErrNotExist.
func Read(path string) (*Content, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe would be waited for
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%s is not a regular file", path), err)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	c, err := decode(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// decode reads the file's bytes.
func decode(data []byte) (*Content, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("larger than %d MiB", maxFile>>20)
	}
	body, ok := bytes.CutPrefix(data, []byte(magic))
	if !ok || len(body) < sumSize {
		return nil, errors.New("not a state of this version of netctl")
	}
	end := len(data) - sumSize
	if crc32.Checksum(data[:end], crc32.MakeTable(crc32.Castagnoli)) != binary.BigEndian.Uint32(data[end:]) {
		return nil, errors.New("damaged: the checksum does not match")
	}
	return unpack(body[:len(body)-sumSize])
}

// unpack reads the content of a file whose checksum matched.
func unpack(body []byte) (*Content, error) {
	in := io.LimitReader(flate.NewReader(bytes.NewReader(body)), maxContent)
	var c Content
	if err := gob.NewDecoder(in).Decode(&c); err != nil {
		return nil, fmt.Errorf("damaged: %w", err)
	}
	if c.State == nil || !c.State.Synced {
		return nil, errors.New("holds no complete state")
	}
	if err := check(c.State); err != nil {
		return nil, fmt.Errorf("not what a source makes: %w", err)
	}
	return &c, nil
}
