// Command argocd-refreshes runs the cache in which ArgoCD's application controller keeps live objects, and prints a line of JSON for
// each refresh of an Application that the cache requests. The cache reads ArgoCD's ConfigMaps from the API server, as in the
// controller. The first line says that it holds all objects.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/argoproj/argo-cd/v3/controller/cache"
	"github.com/argoproj/argo-cd/v3/controller/metrics"
	"github.com/argoproj/argo-cd/v3/controller/sharding"
	"github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
	"github.com/argoproj/argo-cd/v3/pkg/client/clientset/versioned"
	"github.com/argoproj/argo-cd/v3/pkg/client/informers/externalversions"
	"github.com/argoproj/argo-cd/v3/util/argo"
	"github.com/argoproj/argo-cd/v3/util/db"
	"github.com/argoproj/argo-cd/v3/util/settings"
	"github.com/sirupsen/logrus"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// refresh is a refresh of an Application. Managed says whether the Application itself contains the changed object. If not, the
// object is owned by one that it contains.
type refresh struct {
	Application string `json:"application"`
	Managed     bool   `json:"managed"`
	Kind        string `json:"kind"`
	Namespace   string `json:"namespace"`
	Name        string `json:"name"`
}

type printer struct {
	lock    sync.Mutex
	encoder *json.Encoder
}

func (p *printer) print(line any) {
	p.lock.Lock()
	defer p.lock.Unlock()
	if err := p.encoder.Encode(line); err != nil {
		logrus.Fatal(err)
	}
}

// refreshes is called by the cache after a change that it does not ignore, with the Applications that the object belongs to.
func (p *printer) refreshes(managed map[string]bool, object v1.ObjectReference) {
	for application, itself := range managed {
		p.print(refresh{application, itself, object.Kind, object.Namespace, object.Name})
	}
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "the administrator's kubeconfig")
	namespace := flag.String("namespace", "argocd", "the namespace with ArgoCD's settings and Applications")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// With these variables, ArgoCD uses the kubeconfig for the cluster in which it would run.
	for name, value := range map[string]string{"KUBECONFIG": *kubeconfig, v1alpha1.EnvVarFakeInClusterConfig: "true"} {
		must(os.Setenv(name, value))
	}
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	must(err)
	client, err := kubernetes.NewForConfig(config)
	must(err)
	applications, err := versioned.NewForConfig(config)
	must(err)

	manager := settings.NewSettingsManager(ctx, client, *namespace)
	clusters := db.NewDB(*namespace, manager, client)
	informers := externalversions.NewSharedInformerFactoryWithOptions(applications, 0, externalversions.WithNamespace(*namespace))
	informer := informers.Argoproj().V1alpha1().Applications()
	informer.Informer() // so that the factory starts it
	informers.Start(ctx.Done())
	informers.WaitForCacheSync(ctx.Done())
	healthy := func(*http.Request) error { return nil }
	server, err := metrics.NewMetricsServer("", informer.Lister(), func(any) bool { return true }, healthy, nil, nil, clusters)
	must(err)

	output := printer{encoder: json.NewEncoder(os.Stdout)}
	live := cache.NewLiveStateCache(
		clusters, informer.Informer(), manager, server, output.refreshes,
		sharding.NewClusterSharding(clusters, 0, 1, ""), argo.NewResourceTracking(),
	)
	must(live.Init())
	go func() { must(live.Run(ctx)) }()
	local, err := clusters.GetCluster(ctx, v1alpha1.KubernetesInternalAPIServerAddr)
	must(err)
	version, _, err := live.GetVersionsInfo(local) // after all objects are cached
	must(err)
	output.print(map[string]string{"cached": version})
	<-ctx.Done()
}

func must(err error) {
	if err != nil {
		logrus.Fatal(err)
	}
}
