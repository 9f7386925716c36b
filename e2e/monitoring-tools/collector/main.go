// Command collector is an OpenTelemetry collector whose exporter, named json, writes what it receives to standard
// output: a line per request, in the JSON encoding of OTLP.
package main

import (
	"context"
	"log"
	"os"
	"sync"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/confmap/provider/fileprovider"
	"go.opentelemetry.io/collector/exporter"
	"go.opentelemetry.io/collector/exporter/exporterhelper"
	"go.opentelemetry.io/collector/otelcol"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/receiver"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/service/telemetry"
	"go.uber.org/zap"
)

var output sync.Mutex

// printed returns a function that writes one batch of a signal as a line.
func printed[Batch any](encode func(Batch) ([]byte, error)) func(context.Context, Batch) error {
	return func(_ context.Context, batch Batch) error {
		line, err := encode(batch)
		if err != nil {
			return err
		}
		output.Lock()
		defer output.Unlock()
		_, err = os.Stdout.Write(append(line, '\n'))
		return err
	}
}

func metrics(ctx context.Context, set exporter.Settings, config component.Config) (exporter.Metrics, error) {
	return exporterhelper.NewMetrics(ctx, set, config, printed((&pmetric.JSONMarshaler{}).MarshalMetrics))
}

func traces(ctx context.Context, set exporter.Settings, config component.Config) (exporter.Traces, error) {
	return exporterhelper.NewTraces(ctx, set, config, printed((&ptrace.JSONMarshaler{}).MarshalTraces))
}

func logs(ctx context.Context, set exporter.Settings, config component.Config) (exporter.Logs, error) {
	return exporterhelper.NewLogs(ctx, set, config, printed((&plog.JSONMarshaler{}).MarshalLogs))
}

// logger returns the collector's own log, on standard error.
func logger(
	context.Context, telemetry.LoggerSettings, component.Config,
) (*zap.Logger, component.ShutdownFunc, error) {
	log, err := zap.NewProduction()
	return log, nil, err
}

func none() component.Config { return &struct{}{} }

func factories() (otelcol.Factories, error) {
	receivers, err := otelcol.MakeFactoryMap[receiver.Factory](otlpreceiver.NewFactory())
	if err != nil {
		return otelcol.Factories{}, err
	}
	exporters, err := otelcol.MakeFactoryMap(exporter.NewFactory(
		component.MustNewType("json"),
		none,
		exporter.WithMetrics(metrics, component.StabilityLevelStable),
		exporter.WithTraces(traces, component.StabilityLevelStable),
		exporter.WithLogs(logs, component.StabilityLevelStable),
	))
	own := telemetry.NewFactory(none, telemetry.WithCreateLogger(logger))
	return otelcol.Factories{Receivers: receivers, Exporters: exporters, Telemetry: own}, err
}

func main() {
	providers := []confmap.ProviderFactory{fileprovider.NewFactory()}
	command := otelcol.NewCommand(otelcol.CollectorSettings{
		BuildInfo: component.BuildInfo{Command: "collector", Description: "prints OTLP as JSON lines"},
		Factories: factories,
		ConfigProviderSettings: otelcol.ConfigProviderSettings{
			ResolverSettings: confmap.ResolverSettings{ProviderFactories: providers, DefaultScheme: "file"},
		},
	})
	if err := command.Execute(); err != nil {
		log.Fatal(err)
	}
}
