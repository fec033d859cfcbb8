package record

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netctl/netctl/cni"
)

func openTestRecords(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "ports"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func webRecord() *Record {
	return &Record{
		ContainerID: "c1", IfName: "eth0", Namespace: "default", Pod: "web", UID: "u", Netns: "/run/netns/x", NetnsInode: 7,
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.3"), netip.MustParseAddr("fd00::3")}, IfIndex: 2, Ready: true,
	}
}

func TestRecordComesBackAsItWasPut(t *testing.T) {
	t.Parallel()
	s := openTestRecords(t)
	want := webRecord()
	unready := *want
	unready.Ready, unready.IfIndex = false, 0
	for _, r := range []*Record{&unready, want} { // the second replaces the first
		if err := s.Put(r); err != nil {
			t.Fatal(err)
		}
		got, err := s.Get("c1", "eth0")
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(r, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
			t.Error(d)
		}
	}
	all, _, err := s.All()
	if err != nil || len(all) != 1 {
		t.Errorf("%d records (%v), want 1", len(all), err)
	}
}

func TestRecordOfAnotherInterfaceIsAnother(t *testing.T) {
	t.Parallel()
	s := openTestRecords(t)
	for _, ifName := range []string{"eth0", "net1"} {
		r := webRecord()
		r.IfName = ifName
		if err := s.Put(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete("c1", "net1"); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Get("c1", "net1"); r != nil || err != nil {
		t.Errorf("deleted: %v, %v", r, err)
	}
	if r, err := s.Get("c1", "eth0"); r == nil || err != nil {
		t.Errorf("the other one: %v, %v", r, err)
	}
	if err := s.Delete("c1", "net1"); err != nil {
		t.Errorf("deleted twice: %v", err)
	}
}

func TestRecordNamesStayInTheDirectory(t *testing.T) {
	t.Parallel()
	s := openTestRecords(t)
	for _, id := range []string{"../evil", "a/b", "/etc/passwd", "nul\x00"} {
		if err := s.Put(&Record{ContainerID: id, IfName: "eth0"}); err == nil {
			t.Errorf("container ID %q was written", id)
		}
		if _, err := s.Get(id, "eth0"); err == nil {
			t.Errorf("container ID %q was read", id)
		}
		if err := s.Delete("c", id); err == nil {
			t.Errorf("interface %q was deleted", id)
		}
	}
}

// A file that a crash or a person broke must keep neither the agent down nor
// the other records away, and says whose it was.
func TestDamagedRecordsAreSetAside(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, text string }{
		{"empty", ""}, {"cut", `{"containerID":"c2","ifNa`}, {"not ours", `{}`}, {"a list", `[]`}, {"bad address", `{"containerID":"c2","ifName":"eth0","addresses":["x"]}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := openTestRecords(t)
			if err := s.Put(webRecord()); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(s.dir, "c2@eth0.json")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				all, damaged, err := s.All()
				if len(all) != 1 || all[0].ContainerID != "c1" {
					t.Errorf("records %v, want the good one", all)
				}
				if want := []cni.ID{{ContainerID: "c2", IfName: "eth0"}}; err != nil || !slices.Equal(damaged, want) {
					t.Errorf("damaged: %v, %v, want %v", damaged, err, want)
				}
			}
			if _, err := os.Stat(path + damagedSuffix); err != nil {
				t.Errorf("not set aside: %v", err)
			}
			if err := s.Delete("c2", "eth0"); err != nil {
				t.Error(err)
			}
			if _, damaged, err := s.All(); err != nil || len(damaged) != 0 {
				t.Errorf("deleted: %v, %v", damaged, err)
			}
		})
	}
}

// What a kill in the middle of a write leaves is no record.
func TestTemporaryFilesAreNoRecords(t *testing.T) {
	t.Parallel()
	s := openTestRecords(t)
	for _, name := range []string{".c1@eth0.json123", "..json", "notes.txt", "c1@eth0.json.bad"} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if all, damaged, err := s.All(); err != nil || len(all)+len(damaged) != 0 {
		t.Errorf("%v, %v, %v", all, damaged, err)
	}
}

func TestRecordName(t *testing.T) {
	t.Parallel()
	r := webRecord()
	got := []string{r.Name()}
	r.Namespace, r.Pod = "", ""
	got = append(got, r.Name())
	if want := []string{"default/web", "c1/eth0"}; !slices.Equal(got, want) {
		t.Errorf("names %v, want %v", got, want)
	}
}

// FuzzRecord: whatever is in a record's file, reading it ends with a record
// that names an interface, or an error.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"containerID":"c","ifName":"eth0","addresses":["10.0.0.1"],"ready":true}`))
	f.Add([]byte(`{"containerID":1}`))
	f.Add([]byte(``))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(dir, "r.json")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := read(path)
		if (err == nil) != (r != nil && r.ContainerID != "" && r.IfName != "") {
			t.Errorf("record %+v, error %v", r, err)
		}
	})
}

// Get returns the record of an interface, nil when there is none.
func (s *Store) Get(containerID, ifName string) (*Record, error) {
	path, err := s.path(containerID, ifName)
	if err != nil {
		return nil, err
	}
	r, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // the absent record is an answer
	}
	return r, err
}
