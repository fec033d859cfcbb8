package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"

	"github.com/spf13/cobra"

	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/model"
)

// serviceAccountToken is where a pod finds that it is one of a cluster's.
const serviceAccountToken = "/var/run/secrets/kubernetes.io/serviceaccount/token" //nolint:gosec // a path

// defaultClusterDir is where a directory of manifests is looked for.
const defaultClusterDir = "/etc/netctl/cluster"

// sourceFlags say where the cluster's state comes from.
type sourceFlags struct {
	source, clusterDir, kubeconfig string
}

// bindSource defines the flags.
func (f *sourceFlags) bindSource(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.source, "source", "", "where the cluster's state comes from: kubernetes or directory (default kubernetes in a pod or with --kubeconfig)")
	flags.StringVar(&f.clusterDir, "cluster-dir", "", "directory of manifests that is the cluster's state (default "+defaultClusterDir+")")
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "credentials for the API server (default the pod's ServiceAccount)")
}

// chooseSource returns which source is meant.
func (f *sourceFlags) chooseSource() (string, error) {
	switch {
	case f.source == "directory" && f.kubeconfig != "":
		return "", errors.New("--kubeconfig has no use with --source directory")
	case f.source == "kubernetes" && f.clusterDir != "":
		return "", errors.New("--cluster-dir has no use with --source kubernetes")
	case f.clusterDir != "" && f.kubeconfig != "":
		return "", errors.New("--cluster-dir and --kubeconfig are two sources: give one")
	case f.source == "directory" || f.source == "kubernetes":
		return f.source, nil
	case f.source != "":
		return "", fmt.Errorf("--source %q: want kubernetes or directory", f.source)
	case f.clusterDir != "":
		return "directory", nil
	case f.kubeconfig != "":
		return "kubernetes", nil
	}
	if _, err := os.Stat(serviceAccountToken); errors.Is(err, fs.ErrNotExist) {
		return "directory", nil
	}
	return "kubernetes", nil
}

// directory opens the directory of manifests.
func (f *sourceFlags) directory(log *slog.Logger) (*cluster.Directory, error) {
	dir := f.clusterDir
	if dir == "" {
		dir = defaultClusterDir
	}
	d, err := cluster.NewDirectory(cluster.DirectoryConfig{Path: dir, Logger: log})
	if err != nil {
		return nil, fmt.Errorf("--cluster-dir: %w", err)
	}
	return d, nil
}

// partFlags are those of a part of netctl that runs alone.
type partFlags struct {
	sourceFlags
	apiServer, kubeletConf, logLevel, probeSocket string
}

// bindPart defines the flags.
func (f *partFlags) bindPart(cmd *cobra.Command) {
	flags := cmd.Flags()
	f.bindSource(cmd)
	flags.StringVar(&f.apiServer, "api-server", "", "address of the API server (default the one in --kubelet-conf)")
	flags.StringVar(&f.kubeletConf, "kubelet-conf", "/etc/kubernetes/kubelet.conf", "the kubelet's kubeconfig, read for the API server's address and CA")
	flags.StringVar(&f.probeSocket, "probe-socket", "", "where 'netctl probe' is answered")
	flags.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
}

// part is the cluster as a part that runs alone sees it.
type part struct {
	source interface {
		Run(ctx context.Context, publish func(*model.State)) error
	}
	api *cluster.Kubernetes // nil: a directory
}

// openPart opens the source. Of an API server, these kinds are read, and the last
// State is kept in cache where that is not "".
func (f *partFlags) openPart(node, cache string, kinds []string, log *slog.Logger) (part, error) {
	which, err := f.chooseSource()
	if err != nil {
		return part{}, err
	}
	if which == "directory" {
		d, err := f.directory(log)
		return part{source: d}, err
	}
	cluster.LogClient(log)
	k, err := cluster.NewKubernetes(cluster.KubernetesConfig{
		Node: node, Kubeconfig: f.kubeconfig, Server: f.apiServer, KubeletConf: f.kubeletConf, CacheFile: cache, Kinds: kinds, Logger: log,
	})
	return part{source: k, api: k}, err
}

// servers returns where API servers are reached, nil with a directory.
func (p part) servers() func() []netip.AddrPort {
	if p.api == nil {
		return nil
	}
	return p.api.Servers
}
