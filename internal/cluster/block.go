package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/netctl/netctl/internal/model"
)

const (
	blockAPIVersion = "netctl.io/v1alpha1"
	blockKind       = "Block"
	blockPoolKind   = "BlockPool"
	blockPrefix     = "block-"
	blockLock       = ".blocks.lock"
)

// blockObject is netctl's own kind: a range of pod addresses and the node that
// has it. Its name is made of the range, so that there can be but one.
type blockObject struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		CIDR string `json:"cidr"`
		Node string `json:"node"`
	} `json:"spec"`
}

// BlockName returns the name of a range's Block object: "10-128-4-0-24" or
// "fd00-10-1--112".
func BlockName(p netip.Prefix) string {
	name := strings.NewReplacer(".", "-", ":", "-", "/", "-").Replace(p.String())
	if strings.HasPrefix(name, "-") { // "::/0" and the like: a DNS name begins with a letter or digit
		name = "0" + name
	}
	return name
}

// convertBlock converts a Block. The name must be the range's: it is what makes
// a block unique.
func convertBlock(o *blockObject) (*model.Block, error) {
	p, err := netip.ParsePrefix(o.Spec.CIDR)
	switch {
	case err != nil:
		return nil, fmt.Errorf("spec.cidr: %q is not an address range", o.Spec.CIDR)
	case p != p.Masked() || p.Addr().Is4In6():
		return nil, fmt.Errorf("spec.cidr: %s has bits beyond its mask", p)
	case o.Name != BlockName(p):
		return nil, fmt.Errorf("metadata.name must be %s, which is the name of %s", BlockName(p), p)
	case !validName(o.Spec.Node):
		return nil, fmt.Errorf("spec.node: %q is not a node name", o.Spec.Node)
	}
	return &model.Block{CIDR: p, Node: o.Spec.Node}, nil
}

// blockPoolObject is netctl's own kind: ranges that nodes claim blocks from, as
// `netctl ipam apply` writes it.
type blockPoolObject struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Ranges []struct {
			CIDR      string `json:"cidr"`
			BlockSize int    `json:"blockSize"`
		} `json:"ranges"`
	} `json:"spec"`
}

// convertBlockPool converts a BlockPool.
func convertBlockPool(o *blockPoolObject) (*blockRanges, error) {
	var out blockRanges
	for i, r := range o.Spec.Ranges {
		p, err := netip.ParsePrefix(r.CIDR)
		switch {
		case err != nil:
			return nil, fmt.Errorf("spec.ranges[%d].cidr: %q is not an address range", i, r.CIDR)
		case p != p.Masked() || p.Addr().Is4In6():
			return nil, fmt.Errorf("spec.ranges[%d].cidr: %s has bits beyond its mask", i, p)
		case r.BlockSize < p.Bits() || r.BlockSize > p.Addr().BitLen():
			return nil, fmt.Errorf("spec.ranges[%d].blockSize: %s cannot be cut into blocks of /%d", i, p, r.BlockSize)
		}
		out = append(out, model.BlockPool{CIDR: p, Bits: r.BlockSize})
	}
	return &out, nil
}

// BlockFiles keeps the Block objects of a Directory, one file each. Creating a
// file under a name that is taken fails, which is the lock between nodes. Its
// methods may be called concurrently, from any number of processes.
type BlockFiles struct{ dir string }

// Blocks returns the store of the directory's blocks.
func (d *Directory) Blocks() *BlockFiles { return &BlockFiles{dir: d.cfg.Path} }

func (s *BlockFiles) path(p netip.Prefix) string {
	return filepath.Join(s.dir, blockPrefix+BlockName(p)+".yaml")
}

// Create claims a block. When there is one of that range already, whoever has
// it, the error is fs.ErrExist. The file appears complete or not at all: it is
// written under another name and linked (link(2) never replaces).
func (s *BlockFiles) Create(_ context.Context, b model.Block) error {
	var o blockObject
	o.APIVersion, o.Kind, o.Name = blockAPIVersion, blockKind, BlockName(b.CIDR)
	o.Spec.CIDR, o.Spec.Node = b.CIDR.String(), b.Node
	if _, err := convertBlock(&o); err != nil {
		return fmt.Errorf("create block: %w", err)
	}
	data, err := yaml.Marshal(o)
	if err != nil {
		return fmt.Errorf("create block %s: %w", b.CIDR, err)
	}
	tmp, err := writeTemp(s.path(b.CIDR), data, true)
	if err != nil {
		return fmt.Errorf("create block %s: %w", b.CIDR, err)
	}
	err = os.Link(tmp, s.path(b.CIDR))
	err = errors.Join(err, os.Remove(tmp))
	if err != nil {
		return fmt.Errorf("create block %s: %w", b.CIDR, err)
	}
	return syncDir(s.dir)
}

// List returns all blocks as they are on disk now, ordered by range. Files that
// cannot be understood are left out; the source reports them, and their names
// are taken all the same.
func (s *BlockFiles) List(_ context.Context) ([]model.Block, error) {
	list, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list blocks: %w", err)
	}
	var out []model.Block
	for _, e := range list {
		if !strings.HasPrefix(e.Name(), blockPrefix) || !isManifest(e.Name()) {
			continue
		}
		if b, err := readBlock(filepath.Join(s.dir, e.Name())); err == nil {
			out = append(out, *b)
		}
	}
	slices.SortFunc(out, func(a, b model.Block) int { return a.CIDR.Compare(b.CIDR) })
	return out, nil
}

// Delete releases a block, provided that it is still the node's: a block that
// somebody else has claimed meanwhile is an error and stays. Deleting the
// absent succeeds. Deleters take turns under a file lock, so that none removes
// what another one's deletion made room for.
func (s *BlockFiles) Delete(_ context.Context, b model.Block) error {
	lock, err := os.OpenFile(filepath.Join(s.dir, blockLock), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("delete block %s: %w", b.CIDR, err)
	}
	defer lock.Close() // releases the lock
	if err := flock(lock); err != nil {
		return fmt.Errorf("delete block %s: lock: %w", b.CIDR, err)
	}
	have, err := readBlock(s.path(b.CIDR))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("delete block %s: %w", b.CIDR, err)
	case have.Node != b.Node:
		return fmt.Errorf("delete block %s of node %s: it belongs to node %s now", b.CIDR, b.Node, have.Node)
	}
	if err := os.Remove(s.path(b.CIDR)); err != nil {
		return fmt.Errorf("delete block %s: %w", b.CIDR, err)
	}
	return syncDir(s.dir)
}

// flock waits for an exclusive lock on f, which ends with f.
func flock(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var lockErr error
	err = raw.Control(func(fd uintptr) {
		for {
			if lockErr = syscall.Flock(int(fd), syscall.LOCK_EX); !errors.Is(lockErr, syscall.EINTR) {
				return
			}
		}
	})
	return errors.Join(err, lockErr)
}

// readBlock reads the first Block of a file.
func readBlock(path string) (*model.Block, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	docs, problems := decodeFile(data, filepath.Base(path))
	for _, d := range docs {
		if kindOf(d) == kindBlock {
			var o blockObject
			if err := d.into(&o); err != nil {
				return nil, err
			}
			return convertBlock(&o)
		}
	}
	if len(problems) > 0 {
		return nil, problems[0]
	}
	return nil, fmt.Errorf("%s holds no Block", filepath.Base(path))
}
