// RLtools' PPO on its own Pendulum, in the shape that macros give; prints a JSON line. Compiled by measure_rltools.py.
//
//     rltools_ppo SEED STEPS           the rate over so many environment steps, after two updates that are not counted
//     rltools_ppo SEED STEPS SCORE     at most so many steps, or until the last 100 training episodes return SCORE on
//                                      average; tells the mean return of the last 20
//
// Macros: PPO_ENVS, PPO_STEPS, PPO_BATCH, PPO_EPOCHS, PPO_WIDTH (of both hidden layers), PPO_ACTIVATION (RELU, TANH or
// FAST_TANH). The other settings are those of RLtools' Pendulum example, src/rl/environments/pendulum/ppo/cpu/config.h.

#include <rl_tools/operations/cpu_mux.h>

#include <rl_tools/nn/optimizers/adam/instance/operations_generic.h>
#include <rl_tools/nn/operations_cpu_mux.h> // Without this, layers do not use BLAS.
#include <rl_tools/nn/layers/standardize/operations_generic.h>
#include <rl_tools/nn_models/mlp_unconditional_stddev/operations_generic.h>
#include <rl_tools/nn_models/sequential/operations_generic.h>
#include <rl_tools/nn/optimizers/adam/operations_generic.h>
#include <rl_tools/rl/environments/pendulum/operations_generic.h>
#include <rl_tools/rl/algorithms/ppo/loop/core/config.h>
#include <rl_tools/rl/algorithms/ppo/loop/core/operations_generic.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <numeric>

namespace rlt = rl_tools;

using Device = rlt::devices::DEVICE_FACTORY<>;
static_assert(Device::DEVICE_ID == rlt::devices::DeviceId::CPU_OPENBLAS, "the products must be BLAS's");
using Real = float;
using Numbers = rlt::numeric_types::Policy<Real>;
using Index = typename Device::index_t;
using Random = Device::SPEC::RANDOM::ENGINE<>;
using Pendulum = rlt::rl::environments::Pendulum<rlt::rl::environments::pendulum::Specification<Real, Index>>;

struct Settings : rlt::rl::algorithms::ppo::loop::core::DefaultParameters<Numbers, Index, Pendulum> {
    static constexpr Index N_ENVIRONMENTS = PPO_ENVS;
    static constexpr Index ON_POLICY_RUNNER_STEPS_PER_ENV = PPO_STEPS;
    static constexpr Index BATCH_SIZE = PPO_BATCH;
    static constexpr Index ACTOR_HIDDEN_DIM = PPO_WIDTH;
    static constexpr Index CRITIC_HIDDEN_DIM = PPO_WIDTH;
    static constexpr auto ACTOR_ACTIVATION_FUNCTION = rlt::nn::activation_functions::ActivationFunction::PPO_ACTIVATION;
    static constexpr auto CRITIC_ACTIVATION_FUNCTION = ACTOR_ACTIVATION_FUNCTION;
    static constexpr Index EPISODE_STEP_LIMIT = 200;
    using OPTIMIZER_PARAMETERS = rlt::nn::optimizers::adam::DEFAULT_PARAMETERS_PYTORCH<Numbers>;
    struct PPO_PARAMETERS : rlt::rl::algorithms::ppo::DefaultParameters<Numbers, Index, PPO_BATCH> {
        static constexpr Real ACTION_ENTROPY_COEFFICIENT = 0;
        static constexpr Index N_EPOCHS = PPO_EPOCHS;
        static constexpr Real GAMMA = 0.9;
        static constexpr Real INITIAL_ACTION_STD = 2;
    };
};

using Loop = rlt::rl::algorithms::ppo::loop::core::Config<Numbers, Index, Random, Pendulum, Settings>;
using State = Loop::State<Loop>;
constexpr Index STEPS_PER_UPDATE = PPO_ENVS * PPO_STEPS;

// The returns of training episodes, from the rewards that each update leaves behind.
class Returns {
    Real running[PPO_ENVS] = {};
    std::deque<Real> last;

  public:
    void add(State &state) {
        auto &data = state.on_policy_runner_dataset;
        for (Index row = 0; row < STEPS_PER_UPDATE; row++) {
            Real &sum = running[row % PPO_ENVS];
            sum += rlt::get(data.rewards, row, 0);
            if (rlt::get(data.truncated, row, 0)) {
                last.push_back(sum);
                sum = 0;
                if (last.size() > 100) last.pop_front();
            }
        }
    }
    Real mean(Index episodes) const {
        episodes = std::min(episodes, last.size());
        return std::accumulate(last.end() - episodes, last.end(), Real(0)) / episodes;
    }
    bool reach(Real score) const { return last.size() == 100 && mean(100) >= score; }
};

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int main(int count, char **arguments) {
    if (count < 3) return std::fprintf(stderr, "rltools_ppo SEED STEPS [SCORE]\n"), 2;
    const Index seed = std::strtoull(arguments[1], nullptr, 10), steps = std::strtoull(arguments[2], nullptr, 10);
    const bool has_score = count > 3;
    const Real score = has_score ? std::strtof(arguments[3], nullptr) : 0;
    Device device;
    State state;
    Returns returns;
    double started = seconds();
    rlt::malloc(device, state);
    rlt::init(device, state, seed);
    double first = 0;
    if (!has_score) {
        rlt::step(device, state);
        rlt::step(device, state);
        first = seconds() - started;
    }
    started = seconds();
    Index taken = 0;
    while (taken < steps && !(has_score && returns.reach(score))) {
        rlt::step(device, state);
        if (has_score) returns.add(state);
        taken += STEPS_PER_UPDATE;
    }
    const double passed = seconds() - started;
    std::printf("{\"steps_per_second\": %.1f, \"first_update\": %.4f, \"steps\": %zu", taken / passed, first, taken);
    if (has_score) std::printf(", \"return\": %.1f", returns.mean(20));
    std::printf("}\n");
    return 0;
}
