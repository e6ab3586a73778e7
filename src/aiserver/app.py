"""Joins the rooms: the only place that knows them all."""

import gc
import socket
from collections.abc import Callable, Sequence

from aiserver import __version__
from aiserver import settings as s
from aiserver.changes import Changes
from aiserver.chat import ollama_operations as generation_operations
from aiserver.chat import operations as chat_operations
from aiserver.chat import status_operations as chat_status_operations
from aiserver.chat.adapters.dialects import ADAPTERS, LOADED
from aiserver.chat.generation import GenerationHandlers
from aiserver.chat.handlers import ChatHandlers
from aiserver.chat.inquiries import Inquiries
from aiserver.chat.parameters import Parameters
from aiserver.chat.relay import Relay
from aiserver.chat.slots import ChatSlots
from aiserver.chat.status_handlers import ChatStatusHandlers
from aiserver.chat.tellings import tellings
from aiserver.chat.timeouts import timeouts_of
from aiserver.chat.upstreams import Upstreams
from aiserver.contract.operation import declared_in, operation_of
from aiserver.contract.registry import Registry
from aiserver.contract.twins import twins_of
from aiserver.data import Data
from aiserver.dispatch import Dispatch
from aiserver.doors.body import BodyReader
from aiserver.doors.cors import Cors
from aiserver.doors.gateway import Gateway
from aiserver.doors.health import Health
from aiserver.doors.lane import Lane
from aiserver.doors.lifecycle import Lifecycle
from aiserver.doors.limits import limits_of, sizes_of
from aiserver.doors.metrics import Metrics
from aiserver.doors.server import Config
from aiserver.doors.serving import Server
from aiserver.doors.web import Web
from aiserver.files import operations as file_operations
from aiserver.files.access import publishes_of
from aiserver.files.handlers import base_of, file_room, urls_of
from aiserver.files.upload_urls import UploadUrls
from aiserver.history import operations as history_operations
from aiserver.history.handlers import HistoryHandlers
from aiserver.history.store import History
from aiserver.jobs import admin_operations as job_admin_operations
from aiserver.jobs import callback_operations
from aiserver.jobs import operations as job_operations
from aiserver.jobs import status_operations as job_status_operations
from aiserver.jobs.handlers import CallbackSink
from aiserver.keys import operations as key_operations
from aiserver.keys.access import Credentials
from aiserver.keys.authentication import SignIn
from aiserver.keys.handlers import KeyHandlers
from aiserver.keys.ledger import Ledger
from aiserver.keys.signin import SignInLimit
from aiserver.kit import log
from aiserver.kit.background import Background
from aiserver.kit.clock import Clock
from aiserver.kit.db import StorageError
from aiserver.kit.ids import CallIds
from aiserver.kit.redact import Redactor
from aiserver.kit.telemetry import Telemetry
from aiserver.kit.upstream import UpstreamPool
from aiserver.providers import catalogue_operations, ollama_operations, status_operations
from aiserver.providers import operations as provider_operations
from aiserver.providers.catalogue_handlers import CatalogueHandlers
from aiserver.providers.discovery import Discovery
from aiserver.providers.endpoints import Endpoints
from aiserver.providers.environment import reconcile
from aiserver.providers.handlers import ProviderHandlers
from aiserver.providers.health import FailureKind
from aiserver.providers.local.embedded import Embedded
from aiserver.providers.models import Catalogue
from aiserver.providers.ollama_handlers import OllamaHandlers, asking
from aiserver.providers.pool import ProviderPool
from aiserver.providers.prices import Prices
from aiserver.providers.probes import Probes
from aiserver.providers.status_handlers import StatusHandlers
from aiserver.providers.warmth import Warmth
from aiserver.readings import readings_of
from aiserver.settlement import Settlement
from aiserver.work.desk import Desk
from aiserver.work.links import Links
from aiserver.work.rooms import QueuedRoom, places_of, slots_of
from aiserver.work.terms import terms_of

_OPERATIONS = (
    key_operations,
    job_operations,
    job_status_operations,
    job_admin_operations,
    callback_operations,
    provider_operations,
    catalogue_operations,
    status_operations,
    ollama_operations,
    history_operations,
    file_operations,
    chat_operations,
    generation_operations,
    chat_status_operations,
)
_LAST_USED_SECONDS = 5.0
_LEDGER_SECONDS = 0.2
_FOLD_SECONDS = 3600.0
_WARM_SECONDS = 10.0
_PROBE_SECONDS = 1.0
_COLLECT_AFTER = 10_000

_log = log.get("app")


class App:
    """One gateway process. `run` returns when it was told to stop; `rooms` go beside its own."""

    def __init__(
        self,
        settings: s.Settings,
        data: Data,
        redact: Redactor,
        clock: Clock,
        *,
        rooms: Sequence[QueuedRoom] = (),
    ) -> None:
        self._settings = settings
        self._data = data
        self.urls = urls_of(settings, data.engine.tables, clock)
        self._rooms = tuple(rooms)
        self._background = Background()
        self.lifecycle = Lifecycle(grace=settings[s.SHUTDOWN_GRACE])
        self.redact = redact
        self._ring = data.ring
        self._publishes = publishes_of(settings, self._ring.publishes)
        self._catalogue = Catalogue(settings[s.APP_DATA] / "overrides")
        self._pool = ProviderPool(data.providers, self._catalogue.qualified)
        self._changes = Changes(data.engine.tables, self._ring, self._pool, self._providers_changed)
        self._connections = UpstreamPool()
        self._embedded = Embedded.of(data.weights, on=settings[s.LOCAL_MODELS])
        self._endpoints = Endpoints(
            data.providers, settings.texts(), self._embedded.address, redact.learn
        )
        self._upstreams = Upstreams(self._connections, ADAPTERS, LOADED)
        inquiries = Inquiries(self._endpoints, self._upstreams)
        self._probes = Probes(self._pool, inquiries.probe, clock)
        self._prices = Prices(settings[s.APP_DATA] / "overrides")
        self._ledger = Ledger(data.engine.tables, clock)
        self.history = History(
            settings[s.APP_DATA] / "history",
            clock,
            redact,
            archive=data.engine.history(),
            worker=data.worker,
            keep_months=settings[s.HISTORY_MONTHS],
        )
        self._discovery = Discovery(self._pool, inquiries.list_models)
        self._warmth = Warmth(self._pool, inquiries.loaded_models, dialects=LOADED)
        self._parameters = Parameters()
        self._relay = Relay(
            self._pool,
            self._endpoints,
            self._upstreams,
            self._parameters,
            timeouts=timeouts_of(settings),
            wait=settings[s.PROVIDER_WAIT],
        )
        self._slots = ChatSlots(self._pool)
        self._sink = CallbackSink(data.engine.tables)
        self._desk = Desk(
            data,
            data.callback_secrets,
            clock,
            terms_of(settings),
            self._background,
            sink=self._sink.deliver,
            redact=redact,
            call_ids=CallIds(data.process, 1),
            links=Links(self.urls, self._publishes, base=base_of(settings)),
        )
        registry = self._operations = self._registry(clock)
        self.telemetry = Telemetry(
            version=__version__,
            operations=[operation.name for operation in registry],
            outcomes=("ok", "cancelled", *(kind.value for kind in FailureKind)),
            process=data.worker if settings[s.WORKERS] > 1 else None,
        )
        self.telemetry.watch(readings_of(self._pool, self._connections, self.history))
        self.settlement = settlement = Settlement(
            cost_of=self._prices.cost_of,
            ledger=self._ledger,
            history=self.history,
            telemetry=self.telemetry,
        )
        dispatch = Dispatch(
            registry,
            self._ring,
            settlement,
            CallIds(data.process, 0),
            public_catalogue=settings[s.PUBLIC_CATALOGUE],
        )
        reader = BodyReader(sizes_of(settings))
        self._lane = self._hot_lane(dispatch, settlement, reader)
        self.gateway = Gateway(
            registry=registry,
            dispatch=dispatch,
            reader=reader,
            lifecycle=self.lifecycle,
            deferred=self._desk.deferred,
            pages={
                **Web().pages(),
                **Health(
                    self.lifecycle, self._problems, self._warnings, self._embedded.shown
                ).pages(),
                **Metrics(
                    self.telemetry, token=settings.get(s.METRICS_TOKEN), is_admin=self._is_admin
                ).pages(),
            },
            cors=Cors(settings.get(s.CORS_ORIGINS) or ()),
            secret_in_query=settings[s.AUTH_SECRET_IN_QUERY],
            redact=redact,
            lane=self._lane.files if self._lane else None,
        )

    async def run(self, sockets: list[socket.socket], ready: Callable[[], None]) -> None:
        """Serves on these sockets until a stop signal; `ready` is called once calls are taken."""
        await self.start()
        # What is here now stays for good; looking through it again and again finds no garbage.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_COLLECT_AFTER)
        server = Server(self.http_config(), self.lifecycle, self._desk, ready)
        try:
            await server.serve(sockets)
        finally:
            await self.close()

    async def start(self) -> None:
        """Takes over what the store holds and begins the work beside the calls."""
        self.history.start()
        await reconcile(
            self._data.providers, self._settings.texts(), embedded_model=self._embedded.model
        )
        await self._changes.look()
        await self._embedded.start(self._background.every)
        self._background.run("changes", self._changes.run)
        listener = self._data.engine.listener(self._changes.heard)
        if listener is not None:
            self._background.run("changes of others", listener.run)
        self._background.every(_LAST_USED_SECONDS, "last used", self._keep_last_used)
        self._background.every(_LEDGER_SECONDS, "ledger", self._ledger.flush)
        self._desk.schedule.every(_FOLD_SECONDS, "Sum up the ledger by day", self._fold)
        self._desk.schedule.every(
            _PROBE_SECONDS, "Ask offline providers whether they are back", self._probes.round
        )
        self._desk.schedule.every(_WARM_SECONDS, "Ask for loaded models", self._warmth.round)
        slots, owner = slots_of(self._rooms), self._ring.caller_of
        await self._desk.start(
            self._operations, self.settlement, {"chat": self._slots, **slots}, owner
        )
        self._background.run("discovery", self._discovery.run)

    async def close(self) -> None:
        """Ends what `start` began."""
        await self._desk.stop(grace=self.lifecycle.left)
        await self._background.stop()
        await self._keep_last_used()
        await self._embedded.stop()
        await self._connections.aclose()
        await self._desk.close()
        await self._ledger.close()
        await self.history.close()

    def _providers_changed(self) -> None:
        providers = self._pool.providers()
        self.telemetry.known_providers(p.name for p in providers)
        self._parameters.providers_changed(providers)
        self._discovery.providers_changed()

    async def _reread(self) -> dict[str, str]:
        """Reads everything again, changed or not; what of it cannot be used."""
        self._prices.reload()
        await self._changes.look(anyway=True)
        return dict(self._prices.problems)

    async def _fold(self) -> None:
        await self._ledger.fold()

    async def _keep_last_used(self) -> None:
        used = self._ring.take_used()
        if not used:
            return
        try:
            await self._data.keys.touch(used)
        except StorageError as error:
            _log.warning("last_used_not_kept", problem=str(error))

    def _is_admin(self, credentials: Credentials) -> bool:
        return self._ring.identify(credentials).is_admin

    def _hot_lane(
        self, dispatch: Dispatch, settlement: Settlement, reader: BodyReader
    ) -> Lane | None:
        # What is said is kept on the slow path only.
        if self._settings[s.HOT_LANE] == "off" or self._settings[s.KEEP_PROMPTS]:
            return None
        return Lane(
            operation=operation_of(chat_operations.OpenAiChatCompletion),
            dispatch=dispatch,
            pool=self._pool,
            endpoints=self._endpoints,
            connections=self._connections,
            parameters=self._parameters,
            timeouts=timeouts_of(self._settings),
            settlement=settlement,
            bodies=reader,
            lifecycle=self.lifecycle,
            redact=self.redact,
        )

    def _may_act(self, key_id: int) -> bool:
        return self._ring.caller_of(key_id) is not None

    def _registry(self, clock: Clock) -> Registry:
        requests = [request for room in _OPERATIONS for request in declared_in(room)]
        requests += [request for room in self._rooms for request in room.handlers()]
        twins = twins_of(requests)
        requests += twins
        names = [request.__name__ for request in requests]
        rooms = (
            *self._rooms,
            KeyHandlers(
                self._data.keys,
                self._ring,
                clock,
                names,
                secret_of=self._desk.secret_of,
                forget_secret=self._desk.forget_secret,
            ),
            SignIn(self._ring, self._data.sessions, SignInLimit(clock)),
            self._sink,
            ChatStatusHandlers(self._desk.queue),
            file_room(
                self._settings,
                self._data.artifacts,
                self.urls,
                self._publishes,
                UploadUrls(self._data.engine.tables, clock, self._may_act),
            ),
            ProviderHandlers(
                self._data.providers,
                self._pool,
                changed=self._providers_changed,
                asleep=self._embedded.asleep,
            ),
            CatalogueHandlers(
                self._catalogue,
                self._pool,
                asleep=self._embedded.asleep,
                media=lambda: (),  # No media provider can be created yet.
                reread=self._reread,
            ),
            ChatHandlers(self._relay, keep_prompts=self._settings[s.KEEP_PROMPTS]),
            GenerationHandlers(self._relay, clock, keep_prompts=self._settings[s.KEEP_PROMPTS]),
            OllamaHandlers(asking(self._connections)),
            StatusHandlers(
                self._data.providers,
                self._pool,
                self._probes,
                clock,
                changed=self._providers_changed,
            ),
            HistoryHandlers(
                self.history,
                clock,
                providers=lambda: len(self._pool.providers()),
                key_of=self._ring.id_of,
            ),
        )
        handlers = {k: h for room in rooms for k, h in room.handlers().items()}
        places = {**self._slots.places(), **places_of(self._rooms)}
        registry = Registry({**handlers, **self._desk.handlers(twins, places, tellings())})
        registry.require(requests)
        return registry

    def _problems(self) -> dict[str, str]:
        problem = self._changes.problem
        return {"storage": problem} if problem else {}

    def _warnings(self) -> dict[str, str]:
        ledger = {"ledger": self._ledger.problem} if self._ledger.problem else {}
        return {**ledger, **self.history.problems()}

    def http_config(self) -> Config:
        return Config(self.gateway, limits_of(self._settings), self._lane)
